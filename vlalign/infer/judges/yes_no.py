"""What a language model answers about a pair: yes or no."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from vlalign.infer.asked_model import AskedModel
from vlalign.infer.turning import Shown, takes_turns, turns
from vlalign.registry import JUDGES, MODELS
from vlalign.specs import ModelSpec
from vlalign.types import Item, UserError


@JUDGES.register("yes_no")
@dataclass(frozen=True, kw_only=True)
class YesNo:
    """logit(yes) - logit(no), whose logistic is the score of Gu et al. 2025, arXiv:2510.13515.

    `model`: an `llm_reranker` or `mllm_reranker` as it comes, untrained, with its prompt.
    """

    model: Annotated[ModelSpec, MODELS]

    @property
    def shows(self) -> bool:
        """Whether it can be shown demonstrations."""
        return takes_turns(self.model)

    def build(self) -> "YesNoJudge":
        """Found, not yet loaded. Raises UserError."""
        found = YesNoJudge(self.model)
        if found.prompt.no is None:
            raise UserError(
                "judges: yes_no is a difference, and its prompt has no word for no; set prompt.no"
            )
        return found


class YesNoJudge(AskedModel):
    """One number a pair."""

    width = 1

    @property
    def shows(self) -> bool:
        """What is `shown` to it."""
        return takes_turns(self.spec)

    def measure(
        self, query: Item, candidates: Sequence[Item], shown: Shown = ()
    ) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together. `shown`: of each, what stands before its question, answered in its words."""
        told = turns(shown, self.prompt.yes, self.prompt.no)
        [scores] = self.scorer.score([query], [candidates], [told])
        yield {at: [score] for at, score in enumerate(scores.tolist())}
