"""The graph of nearest neighbours among rows."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.ops.precision import wide

BLOCK = 1024  # rows that are compared with all at once


@torch.no_grad()
def neighbour_pairs(rows: Tensor, count: int) -> Tensor:
    """Rows [N, F] -> int64 [2, E]: every (i, j) where one is among the `count` rows nearest to the other.

    The nearest have the largest cosines. Each edge comes in both directions, once; no row is its own.
    """
    unit = normalize(wide(rows), dim=1)
    length = len(unit)
    count = min(count, length - 1)
    nearest = []
    for start in range(0, length, BLOCK):
        cosines = unit[start : start + BLOCK] @ unit.T
        cosines.diagonal(start).fill_(-torch.inf)
        nearest.append(cosines.topk(count, 1).indices)
    ends = torch.cat(nearest).flatten()
    starts = torch.arange(length, device=rows.device).repeat_interleave(count)
    pairs = torch.stack([torch.cat([starts, ends]), torch.cat([ends, starts])])
    edges: Tensor = torch.unique(pairs, dim=1)
    return edges
