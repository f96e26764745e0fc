"""RankNet, Burges et al. 2005, https://doi.org/10.1145/1102351.1102363, eq. 3: over all pairs of a row."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.ops.softplus import softplus
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("rank_net")
@dataclass(frozen=True, kw_only=True)
class RankNet:
    """log(1 + exp((lower - higher) / temperature)) of logits, the mean over pairs of unequal relevance.

    Grades count by their order alone. `pairwise_logistic` compares negatives with the mean score of the
    positives, and never positives with each other; with one positive and negatives of one grade the two are
    equal. A row without an unequal pair is 0. A selector's weights count as yes or no. Memory grows with the
    square of a row: meant for a query's own candidates.
    """

    temperature: float = 1.0

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        dense: DenseRows = rows.dense()
        scores = wide(dense.logits).masked_fill(~dense.mask, 0) / self.temperature
        pairs = dense.targets[:, :, None] > dense.targets[:, None]
        pairs = pairs & dense.mask[:, :, None] & dense.mask[:, None]
        losses = softplus(scores[:, None] - scores[:, :, None]).where(pairs, 0).sum((1, 2))
        return losses / pairs.sum((1, 2)).clamp(min=1)
