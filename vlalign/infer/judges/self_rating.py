"""What a model rates a candidate beside a right answer, and how alike both are: Self-J, Ye and Ng 2024."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Annotated

import torch
from torch import Tensor

from vlalign.infer.judges.likert import Likert, LikertJudge
from vlalign.infer.unit_rows import unit_rower
from vlalign.models.layout import folder_digest, located
from vlalign.models.packages import model_folder
from vlalign.models.reference import Reference
from vlalign.recipe.offline import named
from vlalign.registry import JUDGES, MODELS
from vlalign.specs import ModelSpec
from vlalign.types import Item

HIGHEST = 9


@JUDGES.register("self_rating")
@dataclass(frozen=True, kw_only=True)
class SelfRating:
    """A rating from 0 to 9 that a model may learn to give alone (`self_judge`): arXiv:2409.00935.

    It is the mean of the rating that `model` expects beside a right answer, as `likert` does, and of the
    cosine of candidate and answer by `encoder`, from 0 to 1 on the same scale, below 0 as 0. `model`: an
    `llm_reranker` or `mllm_reranker` as it comes, whose prompt asks for a digit from 0 to 9. `encoder`: a
    dual encoder's folder or Hub id, or `package:NAME` of a text encoder. `reference`: what a query says then.
    `share`: of the model in the mean; 1 or 0 leaves one alone. The right answer is the first candidate that
    is `known` to be right, for itself too: the rating has seen a label, and is no evidence of a judge.
    """

    model: Annotated[ModelSpec, MODELS]
    encoder: str
    reference: Reference = Reference()
    share: float = 0.5

    refers = True  # it measures beside a right answer

    def __post_init__(self) -> None:
        named(self, "encoder")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, got {self.share}")

    def build(self) -> "SelfRatingJudge":
        """Found, not yet loaded. Raises UserError."""
        return SelfRatingJudge(self)


class SelfRatingJudge:
    """One number a pair, from 0 to 9."""

    width = 1
    refers = True

    def __init__(self, spec: SelfRating) -> None:
        self.spec = spec
        self.likert = LikertJudge(Likert(model=spec.model, lowest=0, highest=HIGHEST))
        weights = folder_digest(located(model_folder(spec.encoder), None))
        told = f"self_rating\0{self.likert.digest}\0{weights}\0{spec.reference}\0{spec.share}"
        self.digest = blake2b(told.encode(), digest_size=16).hexdigest()

    @cached_property
    def embed(self) -> Callable[[Sequence[Item]], Tensor]:
        """On this process's device. Raises UserError."""
        return unit_rower(self.spec.encoder)

    def measure(
        self, query: Item, candidates: Sequence[Item], right: Item
    ) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together, beside a right answer."""
        [told] = self.likert.measure(self.spec.reference.beside(query, right), candidates)
        answer, *rows = self.embed([right, *candidates])
        found = rated(torch.tensor([*told.values()])[:, 0], torch.stack(rows) @ answer, self.spec.share)
        yield {at: [rating] for at, rating in enumerate(found.tolist())}


def rated(expected: Tensor, cosine: Tensor, share: float) -> Tensor:
    """The mean of expected ratings and of cosines on their scale; both are [C]."""
    return share * expected + (1 - share) * HIGHEST * cosine.clamp(0, 1)
