"""Barlow Twins, Zbontar et al. 2021, https://arxiv.org/abs/2103.03230, eq. 1; of image and text BarLIP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlalign.ops.learned import Sides, applied, perceptron
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings

EPSILON = 1e-8  # of variances: a dimension of a unit row has about 1 / D


@EMBEDDING_OBJECTIVES.register("barlow")
@dataclass(frozen=True, kw_only=True)
class Barlow:
    """The cross-correlation C [D, D] of the two sides over the batch, against the identity.

    `strength` [sum (C_dd - 1)^2 + `redundancy` sum (C_de)^2 over d != e], as Fini et al. 2023,
    https://arxiv.org/abs/2305.08675, weigh it. `widths`: of the layers of a projector for each side, whose
    last is the D that is correlated; none: the embeddings themselves. The released code projects the towers'
    features, here what is projected is the joint space.
    """

    redundancy: float = 5e-3
    strength: float = 0.025
    widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.redundancy >= 0:
            raise ValueError(f"redundancy must be >= 0, got {self.redundancy}")
        if not self.strength > 0:
            raise ValueError(f"strength must be > 0, got {self.strength}")
        if any(width < 1 for width in self.widths):
            raise ValueError(f"widths must be >= 1, got {list(self.widths)}")

    def head(self, dim: int) -> nn.Module:
        """A projector for each side."""
        return Sides(perceptron(dim, *self.widths), perceptron(dim, *self.widths))

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """The loss of the batch, for each of its rows [N]."""
        rows = len(features.query)
        query, key = applied(self.head, features, features.query, features.key[:rows])
        correlation = standardised(query).T @ standardised(key) / rows
        error = (correlation - torch.eye(len(correlation), dtype=query.dtype, device=query.device)).square()
        invariance = error.trace()
        loss = self.strength * (invariance + self.redundancy * (error.sum() - invariance))
        return loss.expand(rows)


def standardised(x: Tensor) -> Tensor:
    """[N, D] with mean 0 and variance 1 over the batch; a constant dimension becomes 0."""
    return (x - x.mean(0)) * (x.var(0, correction=0) + EPSILON).rsqrt()
