"""Focal weights, (1 - p)^gamma: KaLM-Embedding-V2, Zhao et al. 2025, https://arxiv.org/abs/2506.20923."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.registry import WEIGHTERS
from vlalign.types import Context


@WEIGHTERS.register("focal")
@dataclass(frozen=True, kw_only=True)
class Focal:
    """p is the probability that a row gives to its positive, read from the objective's `positive` and `all`.

    Where an objective names `negatives` instead of `all` (DCL), the positive joins them. `normalized`: the
    mean weight over the valid rows of all ranks is 1. `detached`: the weight itself has no gradient. The
    paper's released training code has no such weights; gamma is what is told of a sibling of the model.
    """

    gamma: float = 0.5
    normalized: bool = False
    detached: bool = True

    reads = ("positive", ("all", "negatives"))

    def __post_init__(self) -> None:
        if not self.gamma >= 0:
            raise ValueError(f"gamma must be >= 0, got {self.gamma}")

    @property
    def coupled(self) -> bool:
        """Whether rows are compared: for their mean."""
        return self.normalized

    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [Q]."""
        rows = context.rows
        if rows is None or not ("positive" in rows and ("all" in rows or "negatives" in rows)):
            named = ", ".join(rows) if rows is not None else "none"
            raise ValueError(
                f"focal reads the reductions 'positive' and 'all' or 'negatives'; the objective names {named}"
            )
        positive = rows["positive"]
        total = rows["all"] if "all" in rows else torch.logaddexp(rows["negatives"], positive)
        miss = 1 - (positive - total).exp()
        # A certain row would have an infinite slope for gamma < 1.
        weights = miss.clamp(min=torch.finfo(miss.dtype).eps) ** self.gamma
        if self.detached:
            weights = weights.detach()
        if self.normalized:
            valid = rows.valid.to(weights.dtype)
            mean = rows.everyones(weights * valid).sum() / rows.everyones(valid).sum().clamp(min=1)
            weights = weights / mean.clamp(min=torch.finfo(mean.dtype).tiny)
        return weights
