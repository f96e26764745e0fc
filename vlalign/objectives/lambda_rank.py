"""LambdaLoss with LambdaRank's weights, Wang et al. 2018, https://doi.org/10.1145/3269206.3271784.

Departure: the natural logarithm, where the paper has that of base 2.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.ops.softplus import softplus
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("lambda_rank")
@dataclass(frozen=True, kw_only=True)
class LambdaRank:
    """The sum over pairs of unequal relevance of RankNet's loss times what NDCG would change by their swap.

    NDCG is of the ranks by the scores as they are, and has no gradient. Among equal scores the less relevant
    come first, so that they are told apart; candidates equal in both have their mean rank. `gain` of a
    relevance r: 2^r - 1 or r itself, below 0 none. `k`: ranks beyond it count nothing; none: all count.
    `temperature` divides logits.

    A row without an unequal pair is 0. A selector's weights count as yes or no. Memory grows with the square
    of a row: meant for a query's own candidates.
    """

    temperature: float = 1.0
    gain: Literal["exponential", "linear"] = "exponential"
    k: int | None = None

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.k is not None and self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        dense: DenseRows = rows.dense()
        scores = wide(dense.logits).masked_fill(~dense.mask, 0)
        relevance = dense.targets.to(scores.dtype).clamp(min=0).masked_fill(~dense.mask, 0)
        losses = softplus((scores[:, None] - scores[:, :, None]) / self.temperature)
        return (losses * self._swaps(scores.detach(), relevance, dense.mask)).sum((1, 2))

    def _swaps(self, scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
        """By how much NDCG changes [Q, C, C]; 0 unless the first of the pair is the more relevant."""
        gains, discounts = self._gains(relevance), self._discounts(_ranks(scores, relevance, mask))
        order = (relevance[:, :, None] > relevance[:, None]) & mask[:, :, None] & mask[:, None]
        changes = [x[:, :, None] - x[:, None] for x in (gains, discounts)]
        return (changes[0] * changes[1].abs()).where(order, 0)

    def _gains(self, relevance: Tensor) -> Tensor:
        """Shares of the best DCG [Q, C]."""
        best = relevance.sort(1, descending=True).values
        if self.gain == "exponential":  # over 2^best, which may be large
            relevance, best = (
                torch.exp2(x - best[:, :1]) - torch.exp2(-best[:, :1]) for x in (relevance, best)
            )
        places = torch.arange(1, 1 + best.shape[1], dtype=best.dtype, device=best.device)
        ideal = (best * self._discounts(places)).sum(1, keepdim=True)
        return relevance / ideal.where(ideal > 0, 1)

    def _discounts(self, ranks: Tensor) -> Tensor:
        discounts = 1 / torch.log2(1 + ranks)
        return discounts if self.k is None else discounts.where(ranks <= self.k, 0)


def _ranks(scores: Tensor, relevance: Tensor, mask: Tensor) -> Tensor:
    """From 1 on [Q, C], of a mean of places halves too."""
    mine, other = ((scores.unsqueeze(dim), relevance.unsqueeze(dim)) for dim in (2, 1))
    tied = other[0] == mine[0]
    before = (other[0] > mine[0]) | (tied & (other[1] < mine[1]))
    same = tied & (other[1] == mine[1])
    before, same = (x & mask[:, None] for x in (before, same))
    return before.sum(2) + (same.sum(2) + 1).to(scores.dtype) / 2
