"""Scores of pairs as whole rows of a query's own candidates, which reduce themselves."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlalign.ops.ask import Ask
from vlalign.ops.gradients import refuse_second
from vlalign.ops.precision import wide
from vlalign.ops.reductions import ALL, POSITIVES, TARGETS, Over, Reduction
from vlalign.ops.rows import DenseRows
from vlalign.ops.tile import Cell, Outcome
from vlalign.ops.view import View
from vlalign.types import Rows, UserError


class Groups:
    """Where each pair lies among its query's candidates, as its group says, in whatever order they come."""

    def __init__(self, group: Tensor, count: int) -> None:
        """`group` int64 [P], from 0 to `count` - 1; a group may be empty."""
        sizes = torch.bincount(group, minlength=count)
        order = group.argsort(stable=True)
        first = sizes.cumsum(0) - sizes
        place = torch.arange(len(group), device=group.device) - first[group[order]]
        self.at = (group[order], place)
        self.order = order
        self.shape = (count, int(sizes.max()) if len(group) else 1)
        self.mask = torch.zeros(self.shape, dtype=torch.bool, device=group.device).index_put(
            self.at, torch.ones_like(place, dtype=torch.bool)
        )

    def lay(self, x: Tensor) -> Tensor:
        """What pairs have, [P, *] -> [Q, C, *], 0 where a group has fewer candidates; differentiable."""
        empty = x.new_zeros(*self.shape, *x.shape[1:])
        return empty.index_put(self.at, x[self.order])


class GroupRows(Rows):
    """One score table [Q, C], and what an ask wants of it."""

    def __init__(
        self, scores: Tensor, groups: Groups, ask: Ask, fields: Sequence[Mapping[str, Tensor]]
    ) -> None:
        """`scores` [P]; `fields`: of queries [Q, *], and of pairs [P, *]. Raises UserError."""
        self.groups, self.scores = groups, groups.lay(wide(scores))
        self.target = _target(ask, groups, *fields).expand_as(self.scores)
        self._outcomes: dict[Cell, Outcome] = {}
        self._named = {name: self._outcome(cell).value for name, cell in ask.cells().items()}
        self.valid = groups.mask.any(1)
        for outcome in self._outcomes.values():
            self.valid = self.valid & outcome.present

    def __getitem__(self, name: str) -> Tensor:
        return self._named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._named)

    def __len__(self) -> int:
        return len(self._named)

    def dense(self, fixed: bool = False) -> DenseRows:
        """The table itself. What a row meets are its own scores, so nothing can be held fixed."""
        mask = self.groups.mask
        return DenseRows(self.scores, self.scores, self.target, mask, mask)

    def everyones(self, x: Tensor) -> Tensor:
        """Raises NotImplementedError: queries come a few at a time, and none is compared with others."""
        raise NotImplementedError(
            "what compares rows of the batch says `coupled`, and is refused before this"
        )

    def _outcome(self, cell: Cell) -> Outcome:
        if cell not in self._outcomes:
            given = [self._outcome(each) for each in cell.given]
            weight = self._weight(cell.reduction.over)
            for outcome in given:
                weight = weight * outcome.present[:, None]
            temperature = cell.reduction.temperature
            score = self.scores if temperature is None else self.scores / temperature
            values = [outcome.value for outcome in given]
            value, present = _Reduced.apply(cell.reduction, weight, self.target, score, *values)
            self._outcomes[cell] = Outcome(value, present)
        return self._outcomes[cell]

    def _weight(self, over: Over) -> Tensor:
        mask = self.groups.mask
        if over is ALL:
            return mask
        if over is TARGETS:
            return self.target * mask
        return mask & ((self.target > 0) if over is POSITIVES else (self.target <= 0))


class _Reduced(torch.autograd.Function):
    """A reduction of whole rows, differentiated by its own slope."""

    @staticmethod
    def forward(
        ctx: Any, reduction: Reduction, weight: Tensor, target: Tensor, score: Tensor, *given: Tensor
    ) -> tuple[Tensor, Tensor]:
        peak, sums = reduction.collect(_view(weight, target, score, given))
        value = reduction.result(peak, sums)
        present = value != -torch.inf
        ctx.reduction = reduction
        ctx.save_for_backward(
            weight,
            target,
            torch.where(present, peak, 0),
            torch.where(present, sums, 1),
            present,
            score,
            *given,
        )
        ctx.mark_non_differentiable(present)
        return torch.where(present, value, 0), present

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        refuse_second()
        weight, target, peak, sums, present, score, *given = ctx.saved_tensors
        view = _view(weight, target, score, given)
        slopes = ctx.reduction.slope(view, peak, sums, torch.where(present, upstream, 0))
        return None, None, None, *slopes, *[None] * (1 + len(given) - len(slopes))


def _view(weight: Tensor, target: Tensor, score: Tensor, given: Sequence[Tensor]) -> View:
    return View(score, weight, target, tuple(each[:, None] for each in given), 1)


def _target(ask: Ask, groups: Groups, query: Mapping[str, Tensor], pairs: Mapping[str, Tensor]) -> Tensor:
    """Relevance [Q, C], bool or float. Raises UserError for a field that the rows do not have."""
    for names, have, whose in (
        (ask.targets.query_fields, query, "queries"),
        (ask.targets.key_fields, pairs, "candidates"),
    ):
        if missing := [name for name in names if name not in have]:
            raise UserError(
                f"targets: they read the field '{missing[0]}', which the {whose} do not have; they have "
                f"{', '.join(sorted(have)) or 'none'}"
            )
    with torch.no_grad():
        queries = {name: query[name].unsqueeze(1) for name in ask.targets.query_fields}
        laid = {name: groups.lay(pairs[name]) for name in ask.targets.key_fields}
        relevance = ask.targets.tile(queries, laid)
        return relevance if relevance.dtype is torch.bool else wide(relevance)
