"""In which numbers a loss is computed."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """In float32, or in float64 if it was: sums over many rows have no place in bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
