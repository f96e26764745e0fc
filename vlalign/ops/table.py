"""The table of scores between this rank's queries and everybody's keys, which reduces itself."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from vlalign.ops.ask import Ask
from vlalign.ops.dist import Shares, shared
from vlalign.ops.histogram import histogram
from vlalign.ops.mixing import with_mixed
from vlalign.ops.rows import DenseRows, TableRows
from vlalign.ops.sweep import sweep
from vlalign.ops.tile import AXIS, Cell, Grid, Lens, Operands, Outcome, Tile
from vlalign.types import Batch, Embeddings, Selector, Side, UserError

CPU_TILE = (512, 512)  # its scores and what is made of them stay in the cache
GPU_TILE = (4096, 4096)  # fills the device
TEMPORARIES = 8  # tensors of a tile's size that are alive at once


class Table:
    """Built once a step. Holds embeddings and what targets and selectors read of them, no [Q, K] tensor.

    Scores are float32, or float64 when one side is. `tile`: queries and keys of one tile; None: chosen. Keys
    and what is read of their fields are gathered from all ranks, so each must build it and ask it the same,
    even with no rows of its own.
    """

    def __init__(self, features: Embeddings, batch: Batch, tile: tuple[int, int] | None = None) -> None:
        query, key = features.query, features.key
        dtype = torch.promote_types(torch.promote_types(query.dtype, key.dtype), torch.float32)
        query, key, scale, bias = (x.to(dtype) for x in (query, key, features.scale, features.bias))
        rows = shared([query.shape[0], key.shape[0]], query.device)
        self._shares: Mapping[Side, Shares] = {"query": rows[0], "key": rows[1]}
        self._own_key = key
        self._own_fields: Mapping[Side, Mapping[str, Tensor]] = {
            "query": batch["query_fields"],
            "key": batch["key_fields"],
        }
        self._operands = Operands(query, self._shares["key"].gather(key), scale, bias)
        self._size = tile or tile_size(query.device)

    def rows(self, asks: Sequence[Ask]) -> list[TableRows]:
        """The rows of each ask, all from one pass: equal reductions are computed once.

        A pass more for reductions that are given others, and one without a gradient for selectors that ask
        for some. Raises UserError when targets or selectors read a field that the rows do not have.
        """
        lenses = [ask.lens for ask in asks]
        grid = Grid(self._fields(lenses, everyones="key"), self._size)
        grid = replace(grid, yardsticks=self._yardsticks(grid, lenses))
        named = [ask.cells() for ask in asks]
        outcomes = self._outcomes(grid, [cell for cells in named for cell in cells.values()])
        return [
            self._mixed(
                grid, ask, self._rows(grid, ask.lens, {name: outcomes[cell] for name, cell in cells.items()})
            )
            for ask, cells in zip(asks, named, strict=True)
        ]

    def _outcomes(self, grid: Grid, cells: Sequence[Cell]) -> dict[Cell, Outcome]:
        """Over every rank's keys on the key side. A pass for each depth of `given`."""
        outcomes: dict[Cell, Outcome] = {}
        for depth in sorted({cell.depth for cell in cells}):
            now = list(dict.fromkeys(cell for cell in cells if cell.depth == depth))
            given = [[self._given(part, outcomes[part]) for part in cell.given] for cell in now]
            outcomes |= zip(now, sweep(grid, self._operands, now, given), strict=True)
        return outcomes

    def _given(self, cell: Cell, outcome: Outcome) -> Outcome:
        """Each rank differentiates its own block; on the key side the ranks' gradients must be summed."""
        if cell.lens.side == "query":
            return outcome
        shares = self._shares["key"]
        return outcome._replace(value=shares.gather(shares.own(outcome.value)))

    def _yardsticks(
        self, grid: Grid, lenses: Sequence[Lens]
    ) -> dict[tuple[Lens, Selector], dict[str, Tensor]]:
        """What selectors ask of a row, through the selectors that ask nothing; NaN where it is missing."""
        asks = {
            (lens, selector): Ask(
                reductions=selector.reductions,
                side=lens.side,
                targets=lens.targets,
                selectors=tuple(s for s in lens.selectors if not s.reductions),
            ).cells()
            for lens in lenses
            for selector in lens.selectors
            if selector.reductions
        }
        with torch.no_grad():
            outcomes = self._outcomes(grid, [cell for cells in asks.values() for cell in cells.values()])
        return {
            key: {name: outcomes[cell].or_nan() for name, cell in cells.items()}
            for key, cells in asks.items()
        }

    def _rows(self, grid: Grid, lens: Lens, outcomes: Mapping[str, Outcome]) -> TableRows:
        own = self._own(lens.side)
        mine = {name: own(outcome.value) for name, outcome in outcomes.items()}
        shares = self._shares[lens.side]
        valid = torch.ones(shares.mine, dtype=torch.bool, device=self._operands.query.device)
        for outcome in outcomes.values():
            valid = valid & own(outcome.present)
        return TableRows(
            mine,
            valid,
            shares,
            lambda fixed: self._dense(grid, lens, fixed),
            lambda bins: histogram(grid, self._operands, lens, bins),
        )

    def _mixed(self, grid: Grid, ask: Ask, rows: TableRows) -> TableRows:
        """The rows with the ask's synthetic negatives, if it has any."""
        if ask.mix is None:
            return rows
        return with_mixed(rows, ask.reductions, ask.mix, ask.lens, *self._turned(grid, ask.lens))

    def _turned(self, grid: Grid, lens: Lens) -> tuple[Grid, Operands]:
        """This rank's rows of a lens's side against everybody's of the other."""
        operands = self._operands
        if lens.side == "query":
            return grid, operands
        own = self._own("key")
        fields = self._fields([lens], everyones="query")
        yardsticks = {
            at: {name: own(x) for name, x in y.items()} for at, y in grid.yardsticks.items() if at[0] == lens
        }
        query = self._shares["query"].gather(operands.query)
        grid = replace(grid, fields=fields, yardsticks=yardsticks)
        return grid, operands._replace(query=query, key=self._own_key)

    def _dense(self, grid: Grid, lens: Lens, fixed: bool) -> DenseRows:
        """One tile of this rank's whole rows."""
        grid, operands = self._turned(grid, lens)
        if fixed:
            other = "key" if lens.side == "query" else "query"
            x = getattr(operands, other)
            operands = operands._replace(**{other: x.detach() + 0 * x})  # its gradient is 0, and there is one
        whole = slice(None)
        with torch.autocast(operands.query.device.type, enabled=False):
            tile = Tile(grid, operands, whole, whole)
            mask = tile.mask(lens)
            rows = (tile.score(None), tile.cosine, tile.target(lens.targets))
        weight = torch.ones_like(tile.cosine, dtype=torch.bool) if mask is None else mask
        return DenseRows(*(x.T if lens.side == "key" else x for x in (*rows, weight > 0, weight)))

    def _own(self, side: Side) -> Callable[[Tensor], Tensor]:
        """Outcomes of queries are this rank's already, those of keys are everybody's."""
        return self._shares["key"].own if side == "key" else lambda x: x

    def _fields(self, lenses: Sequence[Lens], everyones: Side) -> dict[Side, dict[str, Tensor]]:
        """What the lenses read: this rank's of one side, all ranks' of the other. Raises UserError."""
        fields: dict[Side, dict[str, Tensor]] = {}
        for side in AXIS:
            have, names = self._own_fields[side], {name for lens in lenses for name in lens.reads(side)}
            if missing := sorted(names - have.keys()):
                raise UserError(
                    f"targets or selectors read the field '{missing[0]}', which the {side} rows do not have; "
                    f"they have {', '.join(sorted(have))}; set the source's `{missing[0]}:` to the column "
                    "that holds it, or data.annotate to what computes it"
                )
            gather = self._shares[side].gather if side == everyones else lambda x: x
            fields[side] = {name: gather(have[name]) for name in sorted(names)}
        return fields


@cache
def tile_size(device: torch.device) -> tuple[int, int]:
    """Queries and keys of a tile, by what memory the device has free when the process builds its first table.

    A tile with its temporaries takes at most an eighth of it; smaller than the CPU's it never is.
    """
    if device.type != "cuda":
        return CPU_TILE
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    scores = (torch.cuda.mem_get_info(device)[0] + cached) / 8 / TEMPORARIES / torch.float32.itemsize
    side = min(max(2 ** int(math.log2(max(scores, 1)) / 2), min(CPU_TILE)), max(GPU_TILE))
    return side, side
