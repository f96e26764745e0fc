"""Bytes, FLOPs and messages of a step that is only pretended: its tensors have shapes and no contents."""

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

SMALL = 4096  # elements up to which a tensor is real, so that counts and rates keep their values
aten = torch.ops.aten
ATTENTION: dict[Any, Any] = {  # the CPU's, which torch's registry of FLOPs does not know
    aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_: sdpa_flop(
        q.shape, k.shape, v.shape
    ),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *_: sdpa_backward_flop(
        grad.shape, q.shape, k.shape, v.shape
    ),
}


def tensors(value: Any) -> list[Tensor]:
    """Every tensor inside lists, tuples and maps."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps account of what is computed inside its `with`, each storage once, by the part it is `charging`.

    `held`: the share of a part that this process holds, 1 unless said. `peak`: bytes by part when all are
    most together, `most`: when each alone is. `flops`: of products. `sent`: bytes that this process sends in
    a ring, by what they are. A value that is asked of a tensor without contents is 1 or True, a mask chooses
    everything, no two rows are alike, and what is counted is as large as was asked for.
    """

    def __init__(self, width: int = 0, held: Mapping[str, float] | None = None) -> None:
        """`width`: of embeddings, by which their messages are known."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.width, self.held = width, held or {}
        self.part = "temporary"
        self.live: dict[int, tuple[int, str]] = {}
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.flops = 0

    @contextmanager
    def charging(self, part: str) -> Iterator[None]:
        """Inside, new storages are this part's."""
        before, self.part = self.part, part
        yield
        self.part = before

    def forget(self) -> None:
        """Begin a step: what lives stays, what was counted does not."""
        self.peak, self.most, self.flops = self.now.copy(), self.now.copy(), 0
        self.sent.clear()

    def charge(self, tensor: Tensor, part: str) -> None:
        """Note a tensor's storage, or move it from the part where it is to this one."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.live:
            self._release(key)
        else:
            weakref.finalize(storage, self._release, key).atexit = False
        self.live[key] = (int(size * self.held.get(part, 1)), part)
        self.now[part] += self.live[key][0]
        self.most[part] = max(self.most[part], self.now[part])
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()

    def _release(self, key: int) -> None:
        size, part = self.live.pop(key)
        self.now[part] -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operation."""
        given = dict(kwargs or {})
        inputs = tensors((args, given))
        unreal = any(isinstance(x, FakeTensor) for x in inputs)
        if func is aten._local_scalar_dense.default and unreal:
            return 1.0 if args[0].is_floating_point() else 1
        if func.namespace == "c10d":
            self._send(func, args)
        if unreal and func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], [i for mask in args[1] for i in self._everywhere(mask)], *args[2:])
        if not unreal and (inputs or not large(func, args, given)):
            return func(*args, **given)
        with self.fake:
            out = SHAPES.get(func, func)(*args, **given)
        self._count(func, args, given, out)
        for tensor in tensors(out):
            if tensor.untyped_storage()._cdata not in self.live:
                self.charge(tensor, self.part)
        return out

    def _everywhere(self, mask: Tensor | None) -> list[Tensor | None]:
        """The indices that a mask without contents chooses."""
        if mask is None or mask.dtype is not torch.bool:
            return [mask]
        with self.fake:
            return [torch.empty(mask.numel(), dtype=torch.int64) for _ in range(mask.ndim)]

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        packet = func._overloadpacket
        if packet in ATTENTION:
            self.flops += ATTENTION[packet](*args)
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)

    def _send(self, func: Any, args: Any) -> None:
        """A ring sends each block to all others, of a sum twice: once to add up, once to tell."""
        world = torch.distributed.get_world_size()
        sides = [tensors(arg) for arg in args[:2]]
        most = max(sum(x.nbytes for x in side) for side in sides)
        times = 2 if "allreduce" in func._schema.name else 1
        rows = sides[0][0]
        wide = rows.is_floating_point() and rows.ndim > 1 and rows.shape[-1] == self.width
        kind = "gathered embeddings" if wide else "column statistics, fields"
        self.sent[kind] += times * most * (world - 1) // world


def _distinct(x: Tensor, dim: int, *_: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What `torch.unique` finds where all are: they, their places and their counts."""
    places = torch.arange(x.shape[dim])
    return x.clone(), places, torch.ones_like(places)


def _counts(x: Tensor, weights: Tensor | None = None, least: int = 0) -> Tensor:
    """Of `torch.bincount` where nothing is beyond the bins that are asked for."""
    return torch.empty(least, dtype=torch.int64 if weights is None else torch.float64)


# Of operations whose result has a shape that depends on contents.
SHAPES: dict[Any, Any] = {aten.unique_dim.default: _distinct, aten.bincount.default: _counts}


def large(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation without inputs makes what is too large to be real."""
    takes = {argument.name for argument in func._schema.arguments}
    if "device" not in takes:
        return False
    return sum(x.numel() for x in tensors(func(*args, **{**kwargs, "device": "meta"}))) > SMALL


def pretended(value: Any, ledger: Ledger, part: str) -> Any:
    """The same, every tensor replaced by one of its shape and type without contents, charged to a part."""

    def empty(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        with ledger.fake:
            made = torch.empty(x.shape, dtype=x.dtype)
        ledger.charge(made, part)
        return made

    return tree_map(empty, value)
