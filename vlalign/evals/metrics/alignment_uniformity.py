"""Alignment and uniformity of unit rows: Wang and Isola 2020, https://arxiv.org/abs/2005.10242, section 4."""

import torch
from torch import Tensor


def alignment(query: Tensor, key: Tensor, alpha: float = 2.0) -> float:
    """Mean over true pairs [N, D] of their distance to the power `alpha`; 0 is best, chance is 2."""
    squares = (query.double() - key.double()).square().sum(1)
    return squares.pow(alpha / 2).mean().item()


def uniformity(rows: Tensor, t: float = 2.0, block: int = 1024) -> float:
    """Log mean over pairs of rows [N, D] of exp(-t distance^2); lower is better. Memory is `block` x N."""
    rows = rows.double()
    parts = []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        squares = torch.cdist(part, rows).square()
        own = torch.arange(len(part))
        squares[own, start + own] = torch.inf  # a row is no pair with itself
        parts.append((-t * squares).logsumexp((0, 1)))
    pairs = torch.tensor(len(rows) * (len(rows) - 1), dtype=torch.float64)
    return (torch.stack(parts).logsumexp(0) - pairs.log()).item()
