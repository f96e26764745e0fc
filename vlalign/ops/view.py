"""One tile of a table through the eyes of one reduction."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class View:
    """Scores [q, k] and their weights, to be reduced along `dim` into [n]."""

    score: Tensor  # [q, k] logits, or cosines over a temperature
    weight: Tensor | None  # [q, k] bool, or float >= 0; None: every pair counts once
    target: Tensor  # [q, k] relevance, bool or float
    given: tuple[Tensor, ...]  # [q, 1] or [1, k] each
    dim: int

    def along(self, x: Tensor) -> Tensor:
        """A value a row [n], so shaped that it broadcasts over the tile."""
        return x.unsqueeze(self.dim)

    def counted(self, x: Tensor) -> Tensor:
        """`x` [q, k] times the weights; what is left out is 0, even where `x` is not finite."""
        if self.weight is None:
            return x
        if self.weight.dtype is torch.bool:
            return x.masked_fill(~self.weight, 0)
        return torch.where(self.weight > 0, x * self.weight, 0)

    def raised(self) -> Tensor:
        """The scores plus the log of their weights: -inf where left out."""
        if self.weight is None:
            return self.score
        if self.weight.dtype is torch.bool:
            return self.score.masked_fill(~self.weight, -math.inf)
        return self.score + self.weight.log()

    def weights(self) -> Tensor:
        """Sum of weights [n]."""
        if self.weight is None:
            rows = self.score.shape[1 - self.dim]
            return self.score.new_full((rows,), float(self.score.shape[self.dim]))
        return self.weight.sum(self.dim, dtype=self.score.dtype)
