"""Reductions of a row of scores: each a peak, sums, a decay and a slope; tiles and ranks merge alike."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from vlalign.ops.view import View


class Over(Enum):
    """Which pairs of a row are reduced; TARGETS weighs each by its relevance."""

    ALL = "all"
    POSITIVES = "positives"
    NEGATIVES = "negatives"
    TARGETS = "targets"


ALL, POSITIVES, NEGATIVES, TARGETS = Over


@dataclass(frozen=True, kw_only=True)
class Reduction(ABC):
    """A row of scores -> one number. With a temperature it sees cosine / temperature, without one the logits.

    Below 0 it turns the row round: far pairs score high.

    Peaks are [n], sums [`parts`, n]. Sums at a lower peak are multiplied by `decay(lower - higher)` before
    they are added to those at a higher one. A row without pairs gives -inf (Sum and Count: 0).
    """

    over: Over = ALL
    temperature: float | None = None
    parts: ClassVar[int] = 1
    rising: ClassVar[bool] = False  # whether there is a peak to rise; else it stays at 0

    def __post_init__(self) -> None:
        if self.temperature is not None and (self.temperature == 0 or not math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be finite and not 0, got {self.temperature}")

    def asked(self) -> tuple[str, ...]:
        """The earlier reductions of the same row that enter this one."""
        return ()

    def decay(self, gap: Tensor) -> Tensor:
        """What a peak lower by `gap` <= 0 leaves of its sums."""
        return torch.ones_like(gap)

    @abstractmethod
    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """Peak [n] and sums [parts, n] of one tile."""

    @abstractmethod
    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """The reduction [n] of merged peaks and sums."""

    @abstractmethod
    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Upstream [n] times the derivative by each score [q, k], then by each given [n]; None is 0.

        Rows without pairs come with peak 0, sums 1 and upstream 0.
        """


@dataclass(frozen=True, kw_only=True)
class LogSumExp(Reduction):
    """log sum exp(score); over TARGETS log sum relevance * exp(score)."""

    rising: ClassVar[bool] = True

    def decay(self, gap: Tensor) -> Tensor:
        """The sums are relative to exp(peak)."""
        return gap.exp()

    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """The sum of exp(score - peak)."""
        score = view.raised()
        peak = score.amax(view.dim)
        floor = peak.masked_fill(peak == -math.inf, 0)
        return peak, (score - view.along(floor)).exp_().sum(view.dim)[None]

    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """Peak plus log of the sum."""
        return peak + sums[0].log()

    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The softmax."""
        return ((view.raised() - view.along(peak)).exp_().mul_(view.along(upstream / sums[0])),)


@dataclass(frozen=True, kw_only=True)
class Expected(Reduction):
    """The mean score; over TARGETS, its default, weighted by relevance."""

    over: Over = TARGETS
    parts: ClassVar[int] = 2

    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """The weighted sum, and the sum of weights."""
        sums = torch.stack([view.counted(view.score).sum(view.dim), view.weights()])
        return torch.zeros_like(sums[0]), sums

    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """The weighted mean."""
        return torch.where(sums[1] > 0, sums[0] / sums[1], -math.inf)

    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The share of each weight."""
        return (view.counted(view.along(upstream / sums[1]).expand_as(view.score)),)


@dataclass(frozen=True, kw_only=True)
class Max(Reduction):
    """The largest score; equal ones share the gradient, whichever tiles and ranks they are on."""

    rising: ClassVar[bool] = True

    def decay(self, gap: Tensor) -> Tensor:
        """A lower peak's ties do not count."""
        return (gap == 0).to(gap.dtype)

    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """How many scores reach the peak."""
        score = self._chosen(view)
        peak = score.amax(view.dim)
        ties = (score == view.along(peak)).sum(view.dim, dtype=score.dtype)
        return peak, ties.masked_fill(peak == -math.inf, 0)[None]

    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """The peak."""
        return peak

    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """An equal part for each tie."""
        return ((self._chosen(view) == view.along(peak)) * view.along(upstream / sums[0]),)

    def _chosen(self, view: View) -> Tensor:
        return view.score if view.weight is None else view.score.masked_fill(view.weight == 0, -math.inf)


@dataclass(frozen=True, kw_only=True)
class Count(Reduction):
    """How many pairs; over TARGETS, their total relevance. Has no gradient."""

    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """The sum of weights."""
        count = view.weights()
        return torch.zeros_like(count), count[None]

    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """The sum of weights."""
        return sums[0]

    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """None: a count does not depend on scores."""
        return (None,)


@dataclass(frozen=True)
class Sum(Reduction):
    """The sum of `term(score, target, *given)`, elementwise: [q, k] each, `given` broadcast.

    `given` names earlier reductions of the same row, which costs a second pass; a row where one of them has
    nothing to reduce sums to 0. The term must be a module-level function, so that equal sums are equal and
    shared, with a finite slope everywhere.
    """

    term: Callable[..., Tensor]
    given: tuple[str, ...] = field(default=(), kw_only=True)

    def asked(self) -> tuple[str, ...]:
        """The given."""
        return self.given

    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """The sum itself."""
        total = view.counted(self.term(view.score, view.target, *view.given)).sum(view.dim)
        return torch.zeros_like(total), total[None]

    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """The sum itself."""
        return sums[0]

    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The term's own derivatives, those by the given summed over the row."""
        leaves = [x.detach().expand_as(view.score).requires_grad_() for x in (view.score, *view.given)]
        with torch.enable_grad():
            term = self.term(leaves[0], view.target, *leaves[1:])
        each = view.along(upstream).expand_as(term)
        slopes = torch.autograd.grad(term, leaves, each, allow_unused=True, materialize_grads=True)
        score, *given = (view.counted(slope) for slope in slopes)
        return score, *(slope.sum(view.dim) for slope in given)
