"""How alike two rows are that a frozen encoder has seen, for what reads its features as a field."""

import torch
from torch import Tensor


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Unit features [q, 1, F] and [1, k, F], in either order -> [q, k]; no [q, k, F] is formed."""
    return torch.einsum("qkf,qkf->qk", one, other)
