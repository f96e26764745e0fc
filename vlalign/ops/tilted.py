"""The mean of a row's scores under their own softmax."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlalign.ops.reductions import Reduction
from vlalign.ops.view import View


@dataclass(frozen=True, kw_only=True)
class Tilted(Reduction):
    """The mean score, each weighted by its softmax; over TARGETS by relevance too.

    With a temperature below 0 far pairs have the large weights. `detached`: the weights have no gradient.
    """

    detached: bool = False
    parts: ClassVar[int] = 2
    rising: ClassVar[bool] = True

    def decay(self, gap: Tensor) -> Tensor:
        """Both sums are relative to exp(peak)."""
        return gap.exp()

    def collect(self, view: View) -> tuple[Tensor, Tensor]:
        """The sums of exp(score - peak), and of that times the score."""
        raised = view.raised()
        peak = raised.amax(view.dim)
        weight = (raised - view.along(peak.masked_fill(peak == -math.inf, 0))).exp_()
        return peak, torch.stack([weight.sum(view.dim), (weight * view.score).sum(view.dim)])

    def result(self, peak: Tensor, sums: Tensor) -> Tensor:
        """The weighted mean."""
        return torch.where(sums[0] > 0, sums[1] / sums[0], -math.inf)

    def slope(self, view: View, peak: Tensor, sums: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The weight, and unless it is detached what the weights themselves do to the mean."""
        weight = (view.raised() - view.along(peak)).exp_().mul_(view.along(upstream / sums[0]))
        if self.detached:
            return (weight,)
        return (weight.mul_(1 + view.score - view.along(sums[1] / sums[0])),)
