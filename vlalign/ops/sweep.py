"""One pass over the tiles of a table: every reduction, both directions, one node of autograd."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlalign.ops import dist
from vlalign.ops.gradients import Gradients, no_autocast
from vlalign.ops.tile import Cell, Grid, Operands, Outcome, Tile


def sweep(
    grid: Grid, operands: Operands, cells: Sequence[Cell], given: Sequence[Sequence[Outcome]]
) -> list[Outcome]:
    """The outcome of each cell, differentiable once: [Q], or [K] of all ranks' keys. `given`: one list each.

    On the key side each rank merges its block of the table into everybody's outcome, and differentiates that
    block.
    """
    values = [outcome.value for outcomes in given for outcome in outcomes]
    presents = [[outcome.present for outcome in outcomes] for outcomes in given]
    answers = _Sweep.apply(grid, cells, presents, *operands, *values)
    return [Outcome(*pair) for pair in zip(answers[: len(cells)], answers[len(cells) :], strict=True)]


class _Sweep(torch.autograd.Function):
    """Keeps O(rows) between forward and backward: the backward forms the scores again, a tile at a time."""

    @staticmethod
    def forward(
        ctx: Any, grid: Grid, cells: Sequence[Cell], presents: list[list[Tensor]], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        operands, given = Operands(*tensors[:4]), _outcomes(tensors[4:], presents)
        states = [_State(cell, outcomes, operands) for cell, outcomes in zip(cells, given, strict=True)]
        with no_autocast(operands):
            for tile in grid.tiles(operands):
                for state in states:
                    state.absorb(tile)
                del tile  # before the next one is formed
        _merge_ranks([state for state in states if state.cell.lens.side == "key"])
        values, present = zip(*(state.settle() for state in states), strict=True)
        peaks, sums = zip(*((state.peak, state.sums) for state in states), strict=True)
        ctx.grid, ctx.cells, ctx.presents = grid, cells, presents
        ctx.save_for_backward(*tensors, *peaks, *sums, *present)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*present)
        return *values, *present

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        count, saved = len(ctx.cells), ctx.saved_tensors
        tensors, kept = saved[: -3 * count], saved[-3 * count :]
        operands, given = Operands(*tensors[:4]), _outcomes(tensors[4:], ctx.presents)
        thirds = (kept[at : at + count] for at in range(0, 3 * count, count))
        pulls = [_Pull(*row) for row in zip(ctx.cells, given, *thirds, upstream[:count], strict=True)]
        gradients = Gradients(operands, ctx.needs_input_grad[3:7])
        with no_autocast(operands):
            for tile in ctx.grid.tiles(operands):
                gradients.add(tile, _slopes(tile, pulls))
                del tile
        return None, None, None, *gradients.tensors, *(slope for pull in pulls for slope in pull.given_slopes)


class _State:
    """Peak and sums of one cell while tiles come by."""

    def __init__(self, cell: Cell, given: Sequence[Outcome], operands: Operands) -> None:
        self.cell, self.given = cell, given
        rows = getattr(operands, cell.lens.side).shape[0]
        start = -math.inf if cell.reduction.rising else 0.0
        self.peak = operands.query.new_full((rows,), start)
        self.sums = operands.query.new_zeros(cell.reduction.parts, rows)

    def absorb(self, tile: Tile) -> None:
        """Merge one tile into its rows."""
        view = tile.view(self.cell, self.given)
        if view is None:
            return
        span, decay = tile.span[self.cell.lens.side], self.cell.reduction.decay
        before, sums_before = self.peak[span], self.sums[:, span]
        peak, sums = self.cell.reduction.collect(view)
        top = torch.maximum(before, peak)
        floor = _floor(top)
        self.sums[:, span] = sums_before * decay(before - floor) + sums * decay(peak - floor)
        self.peak[span] = top

    def settle(self) -> Outcome:
        """The outcome; peak and sums of rows without pairs become harmless to divide by."""
        value = self.cell.reduction.result(self.peak, self.sums)
        present = value != -math.inf
        self.peak = torch.where(present, self.peak, 0)
        self.sums = torch.where(present, self.sums, 1)
        return Outcome(torch.where(present, value, 0), present)


def _merge_ranks(states: Sequence[_State]) -> None:
    """Two collectives for all columns: their peaks, then their sums."""
    if dist.world() == 1 or not states:
        return
    tops = dist.everyones_max(torch.stack([state.peak for state in states]))
    floors = [_floor(top) for top in tops]
    decayed = [s.sums * s.cell.reduction.decay(s.peak - f) for s, f in zip(states, floors, strict=True)]
    sums = torch.split(dist.everyones_sum(torch.cat(decayed)), [len(part) for part in decayed])
    for state, top, total in zip(states, tops, sums, strict=True):
        state.peak, state.sums = top, total


class _Pull:
    """One cell's part of the backward: the slopes of its scores, and of what was given to it."""

    def __init__(
        self,
        cell: Cell,
        given: Sequence[Outcome],
        peak: Tensor,
        sums: Tensor,
        present: Tensor,
        upstream: Tensor | None,
    ) -> None:
        self.cell, self.given, self.peak, self.sums = cell, given, peak, sums
        self.upstream = None if upstream is None else torch.where(present, upstream, 0)
        self.given_slopes = [
            None if upstream is None else torch.zeros_like(outcome.value) for outcome in given
        ]

    def slope(self, tile: Tile) -> Tensor | None:
        """Of the tile's scores [q, k], None where they are 0; those of the given are added up."""
        view = None if self.upstream is None else tile.view(self.cell, self.given)
        if view is None or self.upstream is None:
            return None
        span = tile.span[self.cell.lens.side]
        slope, *given = self.cell.reduction.slope(
            view, self.peak[span], self.sums[:, span], self.upstream[span]
        )
        for total, part in zip(self.given_slopes, given, strict=True):
            if total is not None and part is not None:
                total[span] += part
        return slope


def _slopes(tile: Tile, pulls: Sequence[_Pull]) -> dict[float | None, Tensor]:
    """Of a tile's scores [q, k], those at one temperature added up."""
    slopes: dict[float | None, Tensor] = {}
    for pull in pulls:
        slope, seen = pull.slope(tile), pull.cell.reduction.temperature
        if slope is not None:
            slopes[seen] = slopes[seen] + slope if seen in slopes else slope
    return slopes


def _floor(peak: Tensor) -> Tensor:
    """Peaks that may be subtracted: where nothing was seen, 0 in place of -inf."""
    return peak.masked_fill(peak == -math.inf, 0)


def _outcomes(values: Sequence[Tensor], presents: Sequence[Sequence[Tensor]]) -> list[list[Outcome]]:
    """Flat values back into the outcomes given to each cell."""
    rest = iter(values)
    return [[Outcome(next(rest), present) for present in group] for group in presents]
