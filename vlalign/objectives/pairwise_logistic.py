"""Pairwise logistic loss (RankNet), Burges et al. 2005, https://doi.org/10.1145/1102351.1102363, eq. 3."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.reductions import NEGATIVES, Count, Expected, Reduction, Sum
from vlalign.ops.softplus import softplus
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


def pair_loss(score: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    """How far a negative is from being surely below the positive."""
    return softplus(score - positive)


@OBJECTIVES.register("pairwise_logistic")
@dataclass(frozen=True, kw_only=True)
class PairwiseLogistic:
    """log(1 + exp(negative - positive)), the mean over the negatives of the positive's own row.

    Several positives of a row enter by their mean score, weighted by relevance. `temperature`: its own, on
    cosines, in place of the model's scale and bias.
    """

    temperature: float | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    @property
    def reductions(self) -> dict[str, Reduction]:
        """The positives' score, the sum over negatives, and how many these are."""
        return {
            "positive": Expected(temperature=self.temperature),
            "pairs": Sum(pair_loss, given=("positive",), over=NEGATIVES, temperature=self.temperature),
            "count": Count(over=NEGATIVES, temperature=self.temperature),
        }

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        return rows["pairs"] / rows["count"].where(rows["count"] > 0, 1)
