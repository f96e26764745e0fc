"""The table cut into tiles: what several reductions need of one tile is computed once, and goes with it."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from vlalign.ops.reductions import ALL, NEGATIVES, POSITIVES, TARGETS, Over, Reduction
from vlalign.ops.view import View
from vlalign.types import Selector, Side, Targets

Value = TypeVar("Value")
AXIS: Mapping[Side, int] = {"query": 1, "key": 0}  # reduced by a row of that side, and where it broadcasts


class Operands(NamedTuple):
    """What scores are made of: score = scale * cosine + bias."""

    query: Tensor  # [Q, D] of this rank
    key: Tensor  # [K, D] of every rank
    scale: Tensor  # [1]
    bias: Tensor  # [1]


@dataclass(frozen=True)
class Lens:
    """A direction of the table, what is relevant in it and which pairs count."""

    side: Side
    targets: Targets
    selectors: tuple[Selector, ...] = ()

    @property
    def axis(self) -> int:
        """The axis of a tile that a row of this side is reduced along."""
        return AXIS[self.side]

    def reads(self, side: Side) -> tuple[str, ...]:
        """Fields of the rows of a side that its targets and selectors look at."""
        own = {"query": self.targets.query_fields, "key": self.targets.key_fields}[side]
        return (*own, *(name for selector in self.selectors for name in selector.fields))


@dataclass(frozen=True)
class Cell:
    """One reduction through one lens, with the cells that are given to it. Equal cells are computed once."""

    reduction: Reduction
    lens: Lens
    given: tuple["Cell", ...] = ()

    @property
    def depth(self) -> int:
        """How many passes come before this cell's."""
        return 1 + max(cell.depth for cell in self.given) if self.given else 0


class Outcome(NamedTuple):
    """A cell's answer. Where there was nothing to reduce, `present` is False and `value` 0."""

    value: Tensor  # [Q] or [K]
    present: Tensor  # bool [Q] or [K]

    def or_nan(self) -> Tensor:
        """The value, NaN where there is none."""
        return torch.where(self.present, self.value, torch.nan)


@dataclass(frozen=True)
class Grid:
    """What a table has besides scores. `yardsticks`: the reductions that a lens's selectors asked for."""

    fields: Mapping[Side, Mapping[str, Tensor]]  # [Q, *] and [K, *] each
    size: tuple[int, int]
    yardsticks: Mapping[tuple[Lens, Selector], Mapping[str, Tensor]] = field(default_factory=dict)

    def tiles(self, operands: Operands) -> Iterator["Tile"]:
        """All tiles, the keys innermost."""
        for rows in _spans(operands.query.shape[0], self.size[0]):
            for columns in _spans(operands.key.shape[0], self.size[1]):
                yield Tile(self, operands, rows, columns)


class Tile:
    """A block [q, k] of the table."""

    def __init__(self, grid: Grid, operands: Operands, rows: slice, columns: slice) -> None:
        self.grid, self.operands = grid, operands
        self.span: Mapping[Side, slice] = {"query": rows, "key": columns}
        self.cosine = operands.query[rows] @ operands.key[columns].T
        self._known: dict[Hashable, Any] = {}

    def score(self, temperature: float | None) -> Tensor:
        """What a reduction sees [q, k]."""
        return self._once(("score", temperature), lambda: self._score(temperature))

    def target(self, targets: Targets) -> Tensor:
        """Relevance [q, k], bool or float; no gradient."""
        return self._once(("target", targets), lambda: self._target(targets))

    def relevant(self, targets: Targets) -> bool:
        """Whether any pair is: none in most tiles, where what is over positives need not look."""
        return self._once(("relevant", targets), lambda: bool(self.target(targets).amax() > 0))

    def mask(self, lens: Lens) -> Tensor | None:
        """Which pairs count, or how much, bool or float [q, k]; None: all, once."""
        return self._once(("mask", lens), lambda: self._mask(lens))

    def weight(self, lens: Lens, over: Over) -> Tensor | None:
        """How much each pair counts [q, k], bool or float; None: once."""
        return self._once(("weight", lens, over), lambda: self._weight(lens, over))

    def view(self, cell: Cell, given: Sequence[Outcome]) -> View | None:
        """The tile as a cell sees it; None when it has no pair that the cell looks for."""
        lens, reduction = cell.lens, cell.reduction
        if reduction.over in (POSITIVES, TARGETS) and not self.relevant(lens.targets):
            return None
        weight = self.weight(lens, reduction.over)
        for outcome in given:
            present = self.along(lens.side, outcome.present)
            weight = present.expand_as(self.cosine) if weight is None else weight * present
        values = tuple(self.along(lens.side, outcome.value) for outcome in given)
        return View(
            self.score(reduction.temperature), weight, self.target(lens.targets), values, AXIS[lens.side]
        )

    def along(self, side: Side, x: Tensor) -> Tensor:
        """The tile's part of a value a row, [n, *] -> [q, 1, *] or [1, k, *]."""
        return x[self.span[side]].unsqueeze(AXIS[side])

    def _once(self, key: Hashable, make: Callable[[], Value]) -> Value:
        if key not in self._known:
            self._known[key] = make()
        value: Value = self._known[key]
        return value

    def _score(self, temperature: float | None) -> Tensor:
        if temperature is not None:
            return self.cosine / temperature
        return (self.cosine * self.operands.scale).add_(self.operands.bias)

    def _fields(self, side: Side) -> dict[str, Tensor]:
        return {name: self.along(side, x) for name, x in self.grid.fields[side].items()}

    def _target(self, targets: Targets) -> Tensor:
        with torch.no_grad():
            relevance = targets.tile(self._fields("query"), self._fields("key")).expand_as(self.cosine)
        return relevance if relevance.dtype is torch.bool else relevance.to(self.cosine.dtype)

    def _mask(self, lens: Lens) -> Tensor | None:
        if not lens.selectors:
            return None
        other: Side = "key" if lens.side == "query" else "query"
        row, column, cosine = self._fields(lens.side), self._fields(other), self.cosine.detach()
        mask = torch.ones_like(cosine, dtype=torch.bool)
        for selector in lens.selectors:
            yardsticks = self.grid.yardsticks.get((lens, selector), {})
            asked = {name: self.along(lens.side, x) for name, x in yardsticks.items()}
            with torch.no_grad():
                kept = selector.tile(row, column, cosine, self.target(lens.targets), **asked)
            mask = mask * (kept if kept.dtype is torch.bool else kept.to(cosine.dtype))
        return mask

    def _weight(self, lens: Lens, over: Over) -> Tensor | None:
        mask = self.mask(lens)
        if over is ALL or (over is NEGATIVES and not self.relevant(lens.targets)):
            return mask
        target = self.target(lens.targets)
        if over is not TARGETS:
            target = {POSITIVES: target > 0, NEGATIVES: target <= 0}[over]
        return target if mask is None else target * mask


def _spans(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
