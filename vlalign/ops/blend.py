"""Rows between two rows, and the shares that they are mixed by."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def beta(size: tuple[int, ...], a: int, b: int, generator: torch.Generator) -> Tensor:
    """Draws of Beta(a, b), float64 on the CPU: the a-th smallest of a + b - 1 uniform numbers."""
    uniform = torch.rand(*size, a + b - 1, generator=generator, dtype=torch.float64)
    return uniform.sort(-1).values[..., a - 1]


def blend(one: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """`share` of one and the rest of the other [..., D], made unit again; `share` broadcasts over [...]."""
    share = share.to(one)[..., None]
    return normalize(share * one + (1 - share) * other, dim=-1)
