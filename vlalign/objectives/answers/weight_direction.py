"""Weight and direction of a gradient, Dai et al. 2025, https://arxiv.org/abs/2510.14824."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlalign.registry import ANSWER_OBJECTIVES
from vlalign.types import Answers


@ANSWER_OBJECTIVES.register("weight_direction")
@dataclass(frozen=True, kw_only=True)
class WeightDirection:
    """How far each candidate is pushed, and along which logit: the two factors that losses differ in.

    `direction`: along yes - no (`sft`) or along yes alone (`cl`). `weight`: that of the cross-entropy of the
    answers (`sft`), that of InfoNCE over the yes (`cl`), 1 (`constant`), or 1 until the answer's probability
    reaches 1 - `margin` (`constant_masked`). Weights have no gradient, so the value means nothing; its
    gradient does: `sft` along `sft` is that of the summed cross-entropy of yes and no, `cl` along `cl` that
    of InfoNCE. `temperature` divides the yes of the `cl` weights, and their size, as a loss's would. Several
    positives share the `cl` weight of one. `normalised`: the weights of a query add up to 1, so that two
    kinds can be told apart by where they point, not by how hard they push.
    """

    weight: Literal["sft", "cl", "constant", "constant_masked"] = "sft"
    direction: Literal["sft", "cl"] = "sft"
    margin: float = 0.1
    temperature: float = 1.0
    normalised: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1:
            raise ValueError(f"margin must be between 0 and 1, got {self.margin}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def __call__(self, answers: Answers) -> Tensor:
        """Losses [Q], whose gradient alone means something."""
        weights = self.weights(answers)
        along = answers.yes - answers.no if self.direction == "sft" else answers.yes
        signed = torch.where(answers.target > 0, -weights, weights)
        return (signed * along.masked_fill(~answers.mask, 0)).sum(1)

    @torch.no_grad()
    def weights(self, answers: Answers) -> Tensor:
        """How far each candidate is pushed [Q, C], 0 where there is none; some of several positives back."""
        positive = (answers.target > 0) & answers.mask
        negative = answers.mask & ~positive
        right = torch.where(positive, 1, -1) * (answers.yes - answers.no)
        if self.weight == "cl":
            probability = (answers.yes / self.temperature).masked_fill(~answers.mask, -torch.inf).softmax(1)
            count = positive.sum(1, keepdim=True)
            missing = 1 / count.clamp(min=1) - probability
            both = (count > 0) & negative.any(1, keepdim=True)
            found = torch.where(positive, missing, probability).where(both, 0) / self.temperature
        else:
            found = {
                "sft": torch.sigmoid(-right),
                "constant": torch.ones_like(right),
                "constant_masked": (right.sigmoid() <= 1 - self.margin).to(right.dtype),
            }[self.weight]
        found = found.masked_fill(~answers.mask, 0)
        if self.normalised:
            found = found / found.abs().sum(1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
        return found

    def notes(self, answers: Answers) -> dict[str, Tensor]:
        """Summed weights of a query's positives and of its negatives, [Q] each."""
        weights = self.weights(answers)
        positive = answers.target > 0
        return {
            "positive_weight": (weights * positive).sum(1),
            "negative_weight": (weights * ~positive).sum(1),
        }
