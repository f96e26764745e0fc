"""Answers about the candidates of a few queries."""

import torch
from torch import Tensor

from vlalign.types import Answers

# One positive, two, none; a candidate too few, and a query without any
LABELS = torch.tensor([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).double()
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()


def logits(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Of yes and of no, fp64 leaves."""
    generator = torch.Generator().manual_seed(seed)
    yes, no = (2 * torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    return yes.requires_grad_(), no.requires_grad_()


def answers(
    yes: Tensor, no: Tensor, total: Tensor | None = None, target: Tensor = LABELS, mask: Tensor = MASK
) -> Answers:
    """Laid out by query."""
    return Answers(yes=yes, no=no, total=total, target=target, mask=mask)
