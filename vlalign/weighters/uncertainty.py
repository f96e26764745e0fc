"""ProDepth, Woo et al. 2024, https://arxiv.org/abs/2407.09303: its loss reweighting, for pairs."""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn

from vlalign.ops.learned import Sides, applied
from vlalign.ops.precision import wide
from vlalign.ops.weighing import everyones_valid, table_of
from vlalign.registry import WEIGHTERS
from vlalign.types import Context

WIDTH = 64  # of the head's hidden layers
BOUND = 10.0  # of log-variances, either way


@WEIGHTERS.register("uncertainty")
@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """A pair whose loss is not what its sides let expect is doubtful: it counts 1 - U, and 0 from gamma.

    U = 1 - exp(-beta |d_a - d_b|) compares two estimates. In the paper they are depths, from one frame and
    from several; here d_a is the loss l that is seen and d_b the loss s that is expected, both in units of s,
    so |l - s| / s. Losses are first divided by their root mean square over the valid rows of all ranks.

    s^2 is the mean of a variance that a head reads from the image and one that it reads from the text, each
    alone. So it knows how hard either tends to be, and not whether they match, which is the loss's to say.
    The head learns by the Gaussian likelihood l^2 / s^2 + log s^2, from which the embeddings learn nothing.
    It begins at s = 1. With beta = gamma = 0.6, losses above 2.53 s are left out, and none for being small;
    where a term has `weigh: pair`, one direction may be cut and the pair count half of the other's weight.
    The paper's fusion of two distributions is no weighting, and is not here.
    """

    beta: float = 0.6
    gamma: float = 0.6

    coupled = True

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be >= 0, got {self.beta}")
        if not self.gamma > 0:
            raise ValueError(f"gamma must be > 0, got {self.gamma}")

    def head(self, dim: int) -> nn.Module:
        """A log-variance from each side."""
        return Sides(_log_variance(dim), _log_variance(dim))

    @torch.no_grad()
    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [Q]."""
        seen, expected = _relative(losses, context), (self.log_variance(context) / 2).exp()
        certainty = (-self.beta * (seen - expected).abs() / expected).exp()
        return certainty.where(1 - certainty < self.gamma, 0)

    def lesson(self, losses: Tensor, context: Context) -> Tensor:
        """What teaches the head [Q]: minus the logarithm of the likelihood, twice."""
        log_variance = self.log_variance(context)
        likelihood = _relative(losses, context).square() * (-log_variance).exp() + log_variance
        return likelihood.where(table_of(context).valid, 0)

    def log_variance(self, context: Context) -> Tensor:
        """log s^2 of each pair [Q], with a gradient by the head alone."""
        features = context.features
        if features is None:
            raise ValueError("uncertainty reads the embeddings of pairs, and the task has none; use align")
        query, key = features.query.detach(), features.key[: len(features.query)].detach()
        sides = torch.cat(applied(self.head, features, query, key), 1)
        return (BOUND * (sides / BOUND).tanh()).logsumexp(1) - log(2)


def _relative(losses: Tensor, context: Context) -> Tensor:
    """In units of their root mean square, without a gradient. Those below 0, as dcl has them, are 0."""
    every = everyones_valid(losses.clamp(min=0), table_of(context))
    size = (every.square().sum() / max(len(every), 1)).sqrt()
    return wide(losses.detach()).clamp(min=0) / size.clamp(min=torch.finfo(size.dtype).eps)


def _log_variance(dim: int) -> nn.Module:
    """Rows [N, D] -> [N, 1], 0 before it has learnt."""
    last = nn.Linear(WIDTH, 1)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, WIDTH), nn.GELU(), last)
