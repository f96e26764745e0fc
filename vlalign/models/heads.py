"""Projection heads: a tower's pooled features -> the joint space."""

from typing import Literal

from torch import nn

Head = Literal["linear", "mlp"]


def projection(width: int, dim: int, kind: Head) -> nn.Module:
    """`linear`: one matrix, as in CLIP; `mlp`: two with GELU between, the first as wide as the tower."""
    if kind == "linear":
        return nn.Linear(width, dim, bias=False)
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, dim))
