"""Yes or no about each candidate, Nogueira et al. 2020, https://arxiv.org/abs/2003.06713."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlalign.ops.softplus import softplus
from vlalign.registry import ANSWER_OBJECTIVES
from vlalign.types import Answers


@ANSWER_OBJECTIVES.register("yes_no")
@dataclass(frozen=True, kw_only=True)
class YesNo:
    """Cross-entropy of the answer: yes for what is relevant, no for all else, the mean over candidates.

    `over`: the two answers alone, or the whole `vocabulary`, as supervised fine-tuning of a language model
    has it. `balanced`: the candidates that are relevant count half, the others half, where there are both.
    Relevance between 0 and 1 is a share of yes; from 1 on it is yes, and no below 0.
    """

    over: Literal["answers", "vocabulary"] = "answers"
    balanced: bool = False

    @property
    def vocabulary(self) -> bool:
        """Whether it reads the sum over all words."""
        return self.over == "vocabulary"

    def __call__(self, answers: Answers) -> Tensor:
        """Losses [Q]. Raises ValueError where the sum over all words is asked for, and there is none."""
        share = answers.target.to(answers.yes.dtype).clamp(0, 1)
        gap = answers.yes - answers.no
        if self.vocabulary:
            if answers.total is None:
                raise ValueError(
                    "yes_no: over: vocabulary wants a language model's words, and there are none"
                )
            losses = answers.total - share * answers.yes - (1 - share) * answers.no
        else:
            losses = softplus(gap) - share * gap
        weight = answers.mask.to(losses.dtype)
        if self.balanced:
            for among in (answers.target > 0, answers.target <= 0):
                some = among & answers.mask
                weight = weight.where(~some, 1 / some.sum(1, keepdim=True).clamp(min=1))
        return (losses * weight).sum(1) / weight.sum(1).clamp(min=1)
