"""The rating that a language model expects to give a pair, over the digits that it may say."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from vlalign.infer.asked_model import AskedModel
from vlalign.infer.turning import Shown, takes_turns, turns
from vlalign.registry import JUDGES, MODELS
from vlalign.specs import ModelSpec
from vlalign.types import Item, UserError


@JUDGES.register("likert")
@dataclass(frozen=True, kw_only=True)
class Likert:
    """sum_d d p(d) / sum_d p(d) over the ratings `lowest` to `highest`: Ye and Ng 2024, arXiv:2409.00935.

    `model`: an `llm_reranker` or `mllm_reranker` as it comes, whose prompt asks for such a digit.
    """

    model: Annotated[ModelSpec, MODELS]
    lowest: int = 1
    highest: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.lowest < self.highest <= 9:
            raise ValueError(f"ratings must be digits, lowest < highest, got {self.lowest} to {self.highest}")

    @property
    def shows(self) -> bool:
        """Whether it can be shown demonstrations."""
        return takes_turns(self.model)

    def build(self) -> "LikertJudge":
        """Found, not yet loaded. Raises UserError."""
        return LikertJudge(self)


class LikertJudge(AskedModel):
    """One number a pair, from `lowest` to `highest`."""

    width = 1

    def __init__(self, spec: Likert) -> None:
        super().__init__(spec.model)
        self.ratings = range(spec.lowest, spec.highest + 1)
        told = self.prompt.whole(str) + self.prompt.instruction  # what it is asked, not how it answers
        if str(spec.lowest) not in told or str(spec.highest) not in told:
            raise UserError(
                f"judges: likert expects a number from {spec.lowest} to {spec.highest}, and its prompt asks "
                "for none; word it so"
            )
        self.digest = f"{self.digest} {self.ratings}"

    @property
    def shows(self) -> bool:
        """What is `shown` to it."""
        return takes_turns(self.spec)

    @cached_property
    def rows(self) -> Tensor:
        """Those of the head for the digits, [D, width] float32 on the CPU. Raises UserError."""
        model = self.scorer.model
        words = [model.process.answer(str(each)) for each in self.ratings]
        found: Tensor = model.net.get_output_embeddings().weight.detach()[words].float().cpu()
        return found

    def measure(
        self, query: Item, candidates: Sequence[Item], shown: Shown = ()
    ) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together. `shown`: of each, what stands before its question, rated best or worst."""
        told = turns(shown, str(self.ratings[-1]), str(self.ratings[0]))
        share = (self.scorer.hidden(query, candidates, told) @ self.rows.T).softmax(-1)
        expected = share @ torch.tensor(self.ratings, dtype=torch.float32)
        yield {at: [rating] for at, rating in enumerate(expected.tolist())}
