"""Margin-MSE, Hofstätter et al. 2020, https://arxiv.org/abs/2010.02666: a teacher's differences.

Departure: all pairs of a row, where the paper has a positive and a negative.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("margin_mse")
@dataclass(frozen=True, kw_only=True)
class MarginMSE:
    """Squared error of the differences of a row's logits, the mean over all pairs of its candidates.

    The targets are a teacher's scores, and the differences wanted are theirs times `scale`; equal ones teach
    too. It is twice the variance (over n - 1) of logits - scale * targets, and is computed so. A row of one
    candidate is 0. A selector's weights count as yes or no.
    """

    scale: float = 1.0

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be > 0, got {self.scale}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        dense: DenseRows = rows.dense()
        scores = wide(dense.logits)
        errors = (scores - self.scale * dense.targets.to(scores.dtype)).masked_fill(~dense.mask, 0)
        count = dense.mask.sum(1, keepdim=True)
        apart = (errors - errors.sum(1, keepdim=True) / count.clamp(min=1)).where(dense.mask, 0)
        return 2 * apart.square().sum(1) / (count[:, 0] - 1).clamp(min=1)
