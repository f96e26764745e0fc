"""Soft assignments of equal shares, Cuturi 2013, https://arxiv.org/abs/1306.0895, in logarithms."""

from torch import Tensor

from vlalign.ops.precision import wide


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Scores [B, K] of samples and prototypes -> shares [B, K]: rows sum to 1, columns are near B / K.

    Each iteration scales the columns to B / K and then the rows to 1. The rows are scaled once before too, so
    that a constant added to a sample's scores changes nothing after any number of iterations.
    """
    shares = (wide(scores) / epsilon).log_softmax(1)
    for _ in range(iterations):
        shares = shares.log_softmax(0).log_softmax(1)  # the rows take back what log(B / K) would add
    return shares.exp()
