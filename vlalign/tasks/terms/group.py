"""Terms over each query's own candidates: of their scores, and of the answers that scores are made of."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vlalign.registry import ANSWER_OBJECTIVES, OBJECTIVES, TARGETS, WEIGHTERS, name_of
from vlalign.tasks.terms.term import check_reads
from vlalign.tasks.terms.width import check_scale
from vlalign.types import AnswerObjective, Objective, Targets, Weighter


@dataclass(frozen=True, kw_only=True)
class GroupTerm:
    """One objective over the scores of a query's candidates, with its weighters.

    `of`: what it sees, the logit of yes less that of no, of yes alone, or of the candidate's number in a list
    of all (a model with `lists`). `scale` multiplies the term. `targets` defaults to the task's.
    """

    objective: Annotated[Objective, OBJECTIVES]
    of: Literal["scores", "yes", "numbers"] = "scores"
    weighters: tuple[Annotated[Weighter, WEIGHTERS], ...] = ()
    scale: float = 1.0
    targets: Annotated[Targets, TARGETS] | None = None

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        for each in (self.objective, *self.weighters):
            if getattr(each, "coupled", False):
                raise ValueError(
                    f"{name_of(type(each))} compares the rows of a batch with each other, and queries come "
                    "a few at a time, each with its own candidates; use the task align, or leave it out"
                )
        for weighter in self.weighters:
            check_reads(self.objective, weighter)


@dataclass(frozen=True, kw_only=True)
class AnswerTerm:
    """One objective over yes and no. `scale` multiplies the term; `targets` defaults to the task's."""

    objective: Annotated[AnswerObjective, ANSWER_OBJECTIVES]
    scale: float = 1.0
    targets: Annotated[Targets, TARGETS] | None = None

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
