"""Every number of one list against every number of another, without a table of all pairs."""

from typing import Any

import torch
from torch import Tensor

from vlalign.ops.softplus import softplus

PART = 2**20  # pairs at once


def logistic_sums(high: Tensor, low: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """For each of `high` [N] the sum of weight * log(1 + exp((low - high) / temperature)) over `low` [M].

    No gradient by the weights [M].
    """
    sums: Tensor = _LogisticSums.apply(high, low, weight, temperature)
    return sums


class _LogisticSums(torch.autograd.Function):
    """Keeps the lists alone: the backward forms the pairs again."""

    @staticmethod
    def forward(ctx: Any, high: Tensor, low: Tensor, weight: Tensor, temperature: float) -> Tensor:
        ctx.temperature = temperature
        ctx.save_for_backward(high, low, weight)
        return torch.cat([softplus((low - part) / temperature) @ weight for part in _parts(high, low)])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None]:
        high, low, weight = ctx.saved_tensors
        upstream = upstream / ctx.temperature
        falls, rise = [], torch.zeros_like(low)
        for part, pull in zip(_parts(high, low), _parts(upstream, low), strict=True):
            slope = ((low - part) / ctx.temperature).sigmoid()
            falls.append((slope @ weight) * -pull[:, 0])
            rise = rise + pull[:, 0] @ slope
        return torch.cat(falls), rise * weight, None, None


def _parts(x: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    """Columns [n, 1], so short that each makes at most PART pairs, one row at least."""
    return torch.split(x[:, None], max(1, PART // max(1, len(other))))
