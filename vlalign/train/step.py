"""The gradients of one step: the only file that calls backward. A batch arrives already cut into chunks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlalign.ops.precision import wide
from vlalign.types import Batch, Embeddings, Loss, Task, TokenLogits

ROWS = ("query", "key")  # tensors of an Embeddings with a row an item; the others are shared by all rows


class Machine(Protocol):
    """What a step needs to know about processes: `vlalign.train.runtime`."""

    device: torch.device

    def micro(self, model: nn.Module, last: bool) -> Any:
        """Context of one chunk's forward and backward; gradients cross processes in the last one only."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Gradients of a scalar, through whatever wraps the model."""
        ...


class Backward(Protocol):
    """`separable` or `cached`. `divisor`: what the sum over this process's rows is divided by."""

    def __call__(
        self, machine: Machine, model: nn.Module, chunks: Sequence[Batch], task: Task,
        *, step: int, total: int, divisor: float,
    ) -> Loss:  # fmt: skip
        """The loss, detached; gradients are left in the parameters."""
        ...


def separable(
    machine: Machine, model: nn.Module, chunks: Sequence[Batch], task: Task,
    *, step: int, total: int, divisor: float,
) -> Loss:  # fmt: skip
    """Each chunk on its own: gradient accumulation, exact when no row of a loss sees another chunk."""
    losses = []
    for index, chunk in enumerate(chunks):
        with machine.micro(model, index == len(chunks) - 1):
            features = model(chunk)
            loss = task.loss(features, chunk, step, total)
            machine.backward(loss.total / divisor + _touch(features))
            losses.append(loss)
    return _sum(losses)


def cached(
    machine: Machine, model: nn.Module, chunks: Sequence[Batch], task: Task,
    *, step: int, total: int, divisor: float,
) -> Loss:  # fmt: skip
    """All rows meet in one loss: GradCache, Gao et al. 2021, https://arxiv.org/abs/2101.06983, section 3."""
    replays, parts = [], []
    with torch.no_grad():  # 1. embed every chunk, remembering the random state that it met
        for chunk in chunks:
            replays.append(Replay(machine.device))
            parts.append(model(chunk))
    leaves = _leaves(Embeddings.cat(parts))
    loss = task.loss(leaves, merge(chunks), step, total)
    torch.autograd.backward(loss.total / divisor)  # 2. any loss, unmodified; it stops at the leaves
    gradients = {name: _gradient(leaf) for name, leaf in leaves.tensors().items()}
    rows = {
        side: torch.split(gradients[side], [len(part.tensors()[side]) for part in parts]) for side in ROWS
    }
    shared = {name: gradient for name, gradient in gradients.items() if name not in ROWS}
    for index, chunk in enumerate(chunks):  # 3. embed again, with gradient, under the same random state
        last = index == len(chunks) - 1
        with machine.micro(model, last):
            with replays[index].again():
                features = model(chunk)
            own = {side: rows[side][index] for side in ROWS}
            shares = _dot(features, shared) if last else _touch(features)  # what is shared counts once
            machine.backward(_dot(features, own) + shares)
    return _sum([loss])


class Replay:
    """The random state at one moment, to be met again, so that dropout falls the same way twice."""

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self.host = torch.get_rng_state()
        self.states = [torch.cuda.get_rng_state(device) for device in self.devices]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, random numbers are those of that moment; outside, nothing has happened."""
        with torch.random.fork_rng(self.devices):
            torch.set_rng_state(self.host)
            for device, state in zip(self.devices, self.states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


def merge(chunks: Sequence[Batch]) -> Batch:
    """What a loss reads of all chunks: ids, fields that all of them have, rows of the averaged weights."""
    merged: dict[str, Any] = {"ids": [row for chunk in chunks for row in chunk["ids"]]}
    for side in ("query_fields", "key_fields"):
        shared = [name for name in chunks[0][side] if all(name in chunk[side] for chunk in chunks)]
        merged[side] = {name: torch.cat([chunk[side][name] for chunk in chunks]) for name in shared}
    if "momentum" in chunks[0]:
        merged["momentum"] = {side: torch.cat([chunk["momentum"][side] for chunk in chunks]) for side in ROWS}
    return merged


def _leaves(features: Embeddings) -> Embeddings:
    """The same numbers as leaves of a new graph, in float32 at least."""

    def leaf(tensor: Tensor) -> Tensor:
        return wide(tensor.detach()).requires_grad_()

    extras = {name: leaf(tensor) for name, tensor in features.extras.items()}
    named = {name: leaf(getattr(features, name)) for name in (*ROWS, "scale", "bias")}
    return replace(features, **named, extras=extras)


def _gradient(leaf: Tensor) -> Tensor:
    """Its gradient; zeros for one that the loss did not read, so that DDP hears of every parameter."""
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _dot(features: Embeddings, gradients: dict[str, Tensor]) -> Tensor:
    """The scalar whose gradient by the features is the given one."""
    tensors = features.tensors()
    return torch.stack([(wide(tensors[name]) * wanted).sum() for name, wanted in gradients.items()]).sum()


def _touch(features: Any) -> Tensor | int:
    """Zero, but with a gradient for everything; of TokenLogits for nothing, for every loss reads them.

    A bias that no loss reads, or a side that none does, must not hang DDP; and where the first chunk leaves a
    parameter out, ZeRO-3 adds its gradient from later chunks to that of the step before.
    """
    if isinstance(features, TokenLogits):
        return 0
    return torch.stack([0 * wide(t).sum() for t in features.tensors().values()]).sum()


def _sum(losses: Sequence[Loss]) -> Loss:
    parts = {name: torch.stack([loss.parts[name] for loss in losses]).sum() for name in losses[0].parts}
    return Loss(torch.stack([loss.total.detach() for loss in losses]).sum(), parts)
