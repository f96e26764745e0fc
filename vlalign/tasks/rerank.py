"""Rerank: a weighted sum of terms over each query's own candidates."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from vlalign.ops.ask import Ask
from vlalign.ops.groups import GroupRows, Groups
from vlalign.ops.precision import wide
from vlalign.registry import TARGETS, TASKS
from vlalign.tasks.terms import Part, named
from vlalign.tasks.terms.group import AnswerTerm, GroupTerm
from vlalign.types import Answers, Batch, Context, Loss, PairScores, Targets


@dataclass(frozen=True, kw_only=True)
class Offset:
    """A number that candidates come with, times `scale`: their scores start from it, and learn the rest."""

    field: str
    scale: float = 1.0


@TASKS.register("rerank")
@dataclass(frozen=True, kw_only=True)
class Rerank:
    """Queries against their own candidates, in groups of any size with any number of positives.

    `terms` see scores, `answer_terms` the logits of yes and no, or of ratings. `targets`: how relevant a
    candidate is. `offset`: a first stage's score, times a number, is part of the score that is learnt; who
    ranks by the model must add it too.
    """

    targets: Annotated[Targets, TARGETS] = field(default_factory=lambda: TARGETS.decode("given"))
    terms: tuple[GroupTerm, ...] = ()
    answer_terms: tuple[AnswerTerm, ...] = ()
    offset: Offset | None = None

    reads = "candidates"
    coupled = False  # a query meets its own candidates alone

    def __post_init__(self) -> None:
        if not self.terms and not self.answer_terms:
            raise ValueError("terms and answer_terms are empty; name at least one objective")
        if self.offset and self.reads_vocabulary:
            raise ValueError("offset: over the whole vocabulary there is no place for it; use over: answers")
        if self.offset and self.reads_ratings:
            raise ValueError("offset: in ratings there is no place for it; leave it out")

    @property
    def reads_vocabulary(self) -> bool:
        """Whether an objective reads the sum over all words."""
        return any(getattr(term.objective, "vocabulary", False) for term in self.answer_terms)

    @property
    def reads_ratings(self) -> bool:
        """Whether an objective reads ratings beside a right answer."""
        return any(getattr(term.objective, "ratings", False) for term in self.answer_terms)

    @property
    def reads_lists(self) -> bool:
        """Whether a term sees the numbers of candidates in a list."""
        return any(term.of == "numbers" for term in self.terms)

    @property
    def reads_numbers(self) -> tuple[str, ...]:
        """Numbers that candidates must come with."""
        terms: tuple[GroupTerm | AnswerTerm, ...] = (*self.terms, *self.answer_terms)
        targets = [term.targets or self.targets for term in terms]
        names = [name for each in targets for name in each.key_fields]
        return tuple(dict.fromkeys([*names, *([self.offset.field] if self.offset else ())]))

    def rows(self, batch: Batch) -> int:
        """Queries of this process."""
        return len(batch["ids"])

    def loss(self, features: PairScores, batch: Batch, step: int, total: int) -> Loss:
        """Sum over local queries. `parts`: of each term before its scale, and what it notes."""
        parts: dict[str, Tensor] = {}
        scaled = [0 * wide(features.scores).sum()]
        with torch.autocast(features.scores.device.type, enabled=False):
            shown = self._shown(features, batch)
            context = Context(batch, None, step, total)
            for name, scale, losses in (*self._of_scores(shown, context), *self._of_answers(shown, batch)):
                parts[name] = losses.sum()
                scaled.append(scale * parts[name])
        return Loss(torch.stack(scaled).sum(), {name: part.detach() for name, part in parts.items()})

    def _shown(self, features: PairScores, batch: Batch) -> "Shown":
        groups = Groups(batch["group"], len(batch["ids"]))
        told = {"scores": features.scores, "yes": features.yes, "numbers": features.numbers}
        scores = {name: wide(x) for name, x in told.items() if x is not None}
        if self.offset is not None:
            added = self.offset.scale * batch["key_fields"][self.offset.field]
            scores = {name: x + added for name, x in scores.items()}
        return Shown(groups, scores, wide(features.no), features.total, features.ratings)

    def _of_scores(self, shown: "Shown", context: Context) -> Iterator[Part]:
        """The losses of each term over scores, weighed."""
        fields = (context.batch["query_fields"], context.batch["key_fields"])
        for name, term in named(self.terms).items():
            ask = Ask(
                reductions=term.objective.reductions, side="query", targets=term.targets or self.targets
            )
            rows = GroupRows(shown.scores[term.of], shown.groups, ask, fields)
            losses = torch.where(rows.valid, term.objective(rows), 0)
            for weighter in term.weighters:
                losses = losses * weighter(losses, replace(context, rows=rows))
            yield name, term.scale, losses

    def _of_answers(self, shown: "Shown", batch: Batch) -> Iterator[Part]:
        """The losses of each term over answers; notes have no scale."""
        fields = (batch["query_fields"], batch["key_fields"])
        for name, term in named(self.answer_terms).items():
            ask = Ask(reductions={}, side="query", targets=term.targets or self.targets)
            answers = shown.answers(GroupRows(shown.scores["yes"], shown.groups, ask, fields))
            yield name, term.scale, term.objective(answers)
            for note, numbers in getattr(term.objective, "notes", lambda _: {})(answers).items():
                yield f"{name}.{note}", 0.0, numbers


class Shown(NamedTuple):
    """Pairs as terms see them, the offset added."""

    groups: Groups
    scores: dict[str, Tensor]  # [P] each
    no: Tensor  # [P]
    total: Tensor | None  # [P]
    ratings: Tensor | None  # [P, 2, 10]

    def answers(self, rows: GroupRows) -> Answers:
        """Laid out by query. `rows`: of the yes."""
        lay, total, ratings = self.groups.lay, self.total, self.ratings
        return Answers(
            yes=rows.scores,
            no=lay(self.no),
            total=None if total is None else lay(wide(total)),
            target=rows.target,
            mask=self.groups.mask,
            ratings=None if ratings is None else lay(wide(ratings)),
        )
