"""Synthetic negatives of a table's rows: made from the hardest of each, and joined with its reductions."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from vlalign.ops.reductions import ALL, NEGATIVES, Reduction
from vlalign.ops.rows import TableRows
from vlalign.ops.tile import AXIS, Grid, Lens, Operands
from vlalign.ops.view import View
from vlalign.types import Side


class Mix(NamedTuple):
    """How a row's synthetic negatives are made: from its `hardest` negatives, that many.

    They count once each, also those made of pairs that a selector lets count less.
    """

    hardest: int
    make: Callable[[Tensor, Tensor], Tensor]  # rows [n, D], hardest [n, H, D] -> [n, M, D]


def mixable(reductions: Mapping[str, Reduction]) -> bool:
    """Whether more negatives can join what was reduced already: values that are one sum at one peak.

    What others are given may not change under them.
    """
    joining = {name: each for name, each in reductions.items() if each.over in (ALL, NEGATIVES)}
    given = {name for each in reductions.values() for name in each.asked()}
    return bool(joining) and all(each.parts == 1 for each in joining.values()) and not given & joining.keys()


def with_mixed(
    rows: TableRows,
    reductions: Mapping[str, Reduction],
    mix: Mix,
    lens: Lens,
    grid: Grid,
    operands: Operands,
) -> TableRows:
    """The rows once more, synthetic negatives among their negatives; rows without a negative stay alike.

    `operands`: this rank's rows of the lens's side, everybody's of the other.
    """
    own, others = operands.query, operands.key
    if lens.side == "key":
        own, others = others, own
    places, some = hardest(grid, operands, lens, mix.hardest)
    made = mix.make(own, others[places])
    cosine = (own[:, None] * made).sum(-1)
    joined = dict(rows)
    for name, reduction in reductions.items():
        if reduction.over not in (ALL, NEGATIVES):
            continue
        seen = reduction.temperature
        score = cosine * operands.scale + operands.bias if seen is None else cosine / seen
        given = tuple(joined[each][:, None] for each in reduction.asked())
        view = View(score, None, torch.zeros_like(score, dtype=torch.bool), given, AXIS["query"])
        joined[name] = torch.where(some, _joined(reduction, rows[name], view), rows[name])
    return replace(rows, reductions=joined)


@torch.no_grad()
def hardest(grid: Grid, operands: Operands, lens: Lens, count: int) -> tuple[Tensor, Tensor]:
    """Places [n, count] of each row's highest negatives on the other side, and whether there are any [n].

    Where a row has fewer, its highest stands in for the rest.
    """
    rows = getattr(operands, lens.side).shape[0]
    best = operands.query.new_full((rows, count), -math.inf)
    places = torch.zeros(rows, count, dtype=torch.long, device=best.device)
    other: Side = "key" if lens.side == "query" else "query"
    for tile in grid.tiles(operands):
        weight = tile.weight(lens, NEGATIVES)
        cosine = tile.cosine if weight is None else tile.cosine.masked_fill(weight == 0, -math.inf)
        cosine = cosine if lens.side == "query" else cosine.T
        mine, theirs = tile.span[lens.side], tile.span[other]
        columns = torch.arange(theirs.start, theirs.stop, device=best.device).expand_as(cosine)
        top = torch.cat([best[mine], cosine], 1).topk(count, 1)
        best[mine] = top.values
        places[mine] = torch.cat([places[mine], columns], 1).gather(1, top.indices)
    some = best[:, 0] > -math.inf
    return torch.where(best > -math.inf, places, places[:, :1]), some


def _joined(reduction: Reduction, value: Tensor, view: View) -> Tensor:
    """A reduction of a row's pairs and of those of the view together."""
    flat = torch.zeros_like(value)
    peak, sums = (value, torch.ones_like(value)[None]) if reduction.rising else (flat, value[None])
    more, others = reduction.collect(view)
    top = torch.maximum(peak, more)
    return reduction.result(top, sums * reduction.decay(peak - top) + others * reduction.decay(more - top))
