"""How the negatives of a table lie between -1 and 1: one more pass over its tiles."""

from typing import Any

import torch
from torch import Tensor

from vlalign.ops import dist
from vlalign.ops.gradients import Gradients, no_autocast
from vlalign.ops.reductions import NEGATIVES
from vlalign.ops.tile import Grid, Lens, Operands


def histogram(grid: Grid, operands: Operands, lens: Lens, bins: int) -> Tensor:
    """How many negatives of all ranks have a cosine at each of `bins` points from -1 to 1, [bins] float64.

    One between two points counts at both, more at the nearer, so that it has a gradient. Every rank must ask
    and differentiate it, or none.
    """
    total: Tensor = _Histogram.apply(grid, lens, bins, *operands)
    return total


def cells(cosine: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The point below each cosine, and what share of the way to the next one it has come, differentiable.

    The outer cells go on beyond -1 and 1, where rounding may have pushed a cosine.
    """
    place = (cosine + 1) * ((bins - 1) / 2)
    cell = place.detach().long().clamp(0, bins - 2)
    return cell, place - cell


class _Histogram(torch.autograd.Function):
    """Keeps the operands alone: the backward forms the cosines again, a tile at a time."""

    @staticmethod
    def forward(ctx: Any, grid: Grid, lens: Lens, bins: int, *tensors: Tensor) -> Tensor:
        ctx.grid, ctx.lens, ctx.bins = grid, lens, bins
        ctx.save_for_backward(*tensors)
        operands = Operands(*tensors)
        below = operands.query.new_zeros(bins, dtype=torch.float64)
        above = below.clone()
        with no_autocast(operands):
            for tile in grid.tiles(operands):
                cell, share = cells(tile.cosine, bins)
                weight = tile.weight(lens, NEGATIVES)
                if weight is not None:
                    share, weight = share * weight, weight.double().flatten()
                below += torch.bincount(cell.flatten(), weight, bins)
                above += torch.bincount(cell.flatten(), share.double().flatten(), bins)
                del tile
        return dist.everyones_sum(below - above + above.roll(1))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        operands = Operands(*ctx.saved_tensors)
        gradients = Gradients(operands, ctx.needs_input_grad[3:])
        rise = dist.everyones_sum(upstream).diff() * ((ctx.bins - 1) / 2)
        rise = rise.to(operands.query.dtype)
        with no_autocast(operands):
            for tile in ctx.grid.tiles(operands):
                slope = rise[cells(tile.cosine, ctx.bins)[0]]
                weight = tile.weight(ctx.lens, NEGATIVES)
                gradients.add(tile, {1.0: slope if weight is None else slope * weight})
                del tile
        return None, None, None, *gradients.tensors
