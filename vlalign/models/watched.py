"""What passes through one layer of a transformer, looked at from outside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vlalign.specs import LayerPass
from vlalign.types import UserError


def blocks(net: Any) -> nn.ModuleList:
    """The layers of what reads tokens. Raises UserError."""
    found = next((each for each in net.get_decoder().modules() if isinstance(each, nn.ModuleList)), None)
    if found is None or not len(found):
        raise UserError(f"{type(net).__name__}: it has no list of layers that can be told apart")
    return found


@contextmanager
def showing(net: Any, attention: bool) -> Iterator[None]:
    """Inside, attention is computed in a way that can be looked at, where that is asked for."""
    before = net.config._attn_implementation
    if attention:
        net.set_attn_implementation("eager")
    try:
        yield
    finally:
        net.set_attn_implementation(before)


class Watched:
    """Layer `at` while one text of T tokens passes through it: within `with`, then `told`."""

    def __init__(self, net: Any, at: int) -> None:
        self.block: nn.Module = blocks(net)[at]
        self.name = f"layer {at} of {type(net).__name__}"
        self.before: Tensor | None = None  # [T, D]
        self.after: Tensor | None = None  # [T, D]
        self.attention: Tensor | None = None  # [heads, T, T]

    def __enter__(self) -> "Watched":
        self.hooks = [each.register_forward_hook(self._attention) for each in self.block.modules()]
        self.hooks.append(self.block.register_forward_pre_hook(self._enter, with_kwargs=True))
        self.hooks.append(self.block.register_forward_hook(self._leave))
        return self

    def __exit__(self, *error: object) -> None:
        for each in self.hooks:
            each.remove()

    def told(self, ids: Tensor, counts: Tensor, attends: bool) -> LayerPass:
        """What passed. Raises UserError where attention is wanted, and none was shown."""
        assert self.before is not None and self.after is not None
        if attends and self.attention is None:
            raise UserError(f"importance: {self.name} shows no attention; choose another")
        attention = self.attention if attends else None
        return LayerPass(ids=ids, counts=counts, before=self.before, after=self.after, attention=attention)

    def _enter(self, block: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        [self.before] = args[0] if args else kwargs["hidden_states"]

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        [self.after] = hidden(output)

    def _attention(self, part: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, tuple) and isinstance(output[-1], Tensor) and output[-1].dim() == 4:
            [self.attention] = output[-1]


def hidden(output: Any) -> Tensor:
    """Of a layer, which gives it alone or first."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
