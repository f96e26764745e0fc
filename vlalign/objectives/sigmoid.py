"""Sigmoid loss (SigLIP), Zhai et al. 2023, https://arxiv.org/abs/2303.15343, algorithm 1."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.reductions import Sum
from vlalign.ops.softplus import softplus
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


def pair_loss(score: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each pair; a target may lie between 0 and 1."""
    return softplus(score) - target * score


@OBJECTIVES.register("sigmoid")
@dataclass(frozen=True, kw_only=True)
class Sigmoid:
    """Every pair is its own yes or no, summed over the row; both directions have one total, taken once."""

    symmetric = True
    reductions = {"loss": Sum(pair_loss)}

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        return rows["loss"]
