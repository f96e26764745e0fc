"""What teaches a weighter that learns from what its weights would do: a step is tried, and taken back.

The rows of a step are split in two halves. The weighted loss of the inner half makes a step of gradient
descent; the weighted loss of the outer half after it says what the weights were worth. A table of scores has
no second derivative, so what each row's gradient has to do with the outer one is seen from a difference of
losses, all rows at once: DARTS, Liu et al. 2019, https://arxiv.org/abs/1806.09055, eq. 8. A step of plain
descent is linear in the weights, so that but for this difference the gradient is exact.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from vlalign.ops.weighing import Weighing
from vlalign.train.step import Backward, Replay, merge
from vlalign.types import Batch, Embeddings, Loss, RecipeError

REACH = 0.01  # length of each arm of the difference: long against rounding, short against curvature
SCRAMBLE = 0x2545F4914F6CDD1D  # odd, its bits in no order


class Processes(Protocol):
    """What this needs to know about processes: `vlalign.train.runtime`."""

    device: torch.device

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's tensor."""


class Weighings(Protocol):
    """What a task makes of features for the weighter that is taught: its term's losses and rates."""

    def __call__(self, features: Embeddings, batch: Batch, step: int, total: int) -> Sequence[Weighing]:
        """By direction."""


def check(deepspeed: bool, precision: str) -> None:
    """Raises RecipeError where a step cannot be tried."""
    told = "task.terms: a weighter learns from steps that are tried and taken back, which "
    if deepspeed:
        raise RecipeError(f"{told}DeepSpeed does not let it; use recipes/launch/ddp.yaml")
    if precision != "fp32":
        raise RecipeError(f"{told}are too small for {precision}; use precision=fp32")


def teach(
    processes: Processes, model: nn.Module, head: Mapping[str, nn.Parameter], chunks: Sequence[Batch],
    weighings: Weighings, backward: Backward, *, inner_lr: float, step: int, total: int,
) -> None:  # fmt: skip
    """Leave in the parameters of `head` a gradient, the same in every process; all else is as it was.

    `model`: the bare module. `head`: what the weighter learns, by the names in `Embeddings.extras`. It is a
    function of weights, batch, step and random state; dropout falls the same way in every pass.
    """
    own = {id(p) for p in head.values()}
    learned = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    replay = Replay(processes.device)

    def gradient(half: Half) -> Tensor:
        collected = Collected(processes.device, learned)
        with replay.again():
            backward(collected, model, chunks, half, step=step, total=total, divisor=1.0)
        return processes.sum(collected.gradient)

    def losses(by: Tensor) -> Tensor:
        with replay.again(), moved(learned, by), torch.no_grad():
            features = Embeddings.cat([model(chunk) for chunk in chunks])
            return Seen.of(weighings(features, merge(chunks), step, total), step).losses

    inner = Half(weighings, processes, outer=False)
    descent = gradient(inner)
    outer = Half(weighings, processes, outer=True, shares=inner.shares)
    with moved(learned, -inner_lr * descent):
        slope = gradient(outer)
    length = slope.norm().clamp(min=torch.finfo(slope.dtype).tiny)
    arm = slope * (REACH / length)
    products = (losses(arm) - losses(-arm)) * (length / (2 * REACH))  # of each row's gradient and the slope
    effects = torch.where(inner.seen.outer, outer.seen.losses, -inner_lr * products)
    for parameter, found in zip(head.values(), inner.backward(effects, tuple(head)), strict=True):
        parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad.copy_(processes.sum(found))


def is_outer(row: Tensor, step: int) -> Tensor:
    """Bool: the half of the rows [N] that judges in this step, whichever processes have them."""
    mixed = (row + step * 1_000_003) * SCRAMBLE  # wraps around
    return ((mixed ^ (mixed >> 29)) * SCRAMBLE >> 40) & 1 == 1


class Seen(NamedTuple):
    """The rows of all directions in one line."""

    losses: Tensor  # [N] detached
    rates: Tensor  # [N] 0 where not valid
    group: Tensor  # [N] 2 * direction, + 1 in the outer half
    directions: int

    @classmethod
    def of(cls, weighings: Sequence[Weighing], step: int) -> "Seen":
        """Join what a task gives."""
        losses = torch.cat([each.losses.detach() for each in weighings])
        rates = torch.cat([each.rates.where(each.valid, 0) for each in weighings])
        group = [2 * at + is_outer(each.row, step).long() for at, each in enumerate(weighings)]
        return cls(losses, rates, torch.cat(group), len(weighings))

    @property
    def outer(self) -> Tensor:
        """Bool [N]."""
        return self.group % 2 == 1


class Shares:
    """What each row has of the weighted mean of its group, in all processes."""

    def __init__(self, seen: Seen, processes: Processes) -> None:
        self.seen, self.processes = seen, processes
        rates = seen.rates.detach()
        self.total = self._sums(rates).clamp(min=torch.finfo(rates.dtype).tiny)
        self.each = rates / self.total  # [N]

    def slopes(self, effects: Tensor) -> Tensor:
        """By each rate [N], of what changes by effects [N] with each share: shares of a group add up to 1."""
        return (effects - self._sums(self.each * effects)) / self.total

    def _sums(self, x: Tensor) -> Tensor:
        """Of `x` [N] over each row's group [N]."""
        sums = x.new_zeros(2 * self.seen.directions).index_add(0, self.seen.group, x)
        return self.processes.sum(sums)[self.seen.group]


class Half:
    """The weighted loss of one half, mean over directions, as a task; it remembers what it has seen."""

    coupled = True
    seen: Seen

    def __init__(
        self, weighings: Weighings, processes: Processes, outer: bool, shares: Shares | None = None
    ) -> None:
        """`shares`: as found before the rows have changed; None: find them."""
        self.weighings, self.processes, self.outer, self.shares = weighings, processes, outer, shares

    def rows(self, batch: Batch) -> int:
        """Queries of this process."""
        return len(batch["ids"])

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        """This process's part."""
        weighings = self.weighings(features, batch, step, total)
        self.extras, self.seen = features.extras, Seen.of(weighings, step)
        self.shares = self.shares or Shares(self.seen, self.processes)
        counted = self.shares.each * (self.seen.outer == self.outer) / self.seen.directions
        return Loss((counted * torch.cat([each.losses for each in weighings])).sum(), {})

    def backward(self, effects: Tensor, names: Sequence[str]) -> list[Tensor]:
        """By the extras of these names, of what changes by effects [N] with each share."""
        assert self.shares is not None  # a loss was asked for
        slopes = self.shares.slopes(effects) / self.seen.directions
        asked = [self.extras[name] for name in names]
        return list(torch.autograd.grad((slopes * self.seen.rates).sum(), asked, materialize_grads=True))


class Collected:
    """A machine for `backward` that leaves `.grad` alone, and so what DDP does about it."""

    def __init__(self, device: torch.device, parameters: Sequence[nn.Parameter]) -> None:
        self.device, self.parameters = device, parameters
        self.gradient = torch.cat([torch.zeros_like(p).flatten() for p in parameters])

    def micro(self, model: nn.Module, last: bool) -> Any:
        """Each process keeps its own."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar."""
        found = torch.autograd.grad(loss, self.parameters, materialize_grads=True)
        self.gradient += torch.cat([each.flatten() for each in found])


@contextmanager
def moved(parameters: Sequence[nn.Parameter], by: Tensor) -> Iterator[None]:
    """Inside, the parameters are elsewhere; outside, where they were, to the bit."""
    before = [p.detach().clone() for p in parameters]
    parts = torch.split(by, [p.numel() for p in parameters])
    try:
        _place(parameters, [own + part.view_as(own) for own, part in zip(before, parts, strict=True)])
        yield
    finally:
        _place(parameters, before)


@torch.no_grad()
def _place(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)
