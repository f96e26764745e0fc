"""What a recipe may say of a model that teaches another while this learns."""

from dataclasses import dataclass
from typing import Literal

from vlalign.recipe.offline import check_written, named


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A frozen model that scores each query's candidates as they are drawn, in place of a judging before.

    `model`: the folder of a reranker or a dual encoder, or a Hub id, as of `revision`. `number`: what its
    score is called, a new number of candidates. `form`: as the judge `saved` measures it, a reranker's raw
    score (`logit`) or a dual encoder's cosine; or the sigmoid of a reranker's, its `probability` of yes.
    """

    model: str
    revision: str | None = None
    number: str = "teacher_score"
    form: Literal["logit", "probability"] = "logit"

    def __post_init__(self) -> None:
        named(self, "model", "number")
        check_written(self.number, "one")
