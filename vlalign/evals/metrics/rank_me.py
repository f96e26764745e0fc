"""RankMe, the effective rank of embeddings: Garrido et al. 2022, https://arxiv.org/abs/2210.02885, eq. 1."""

import torch
from torch import Tensor


def spectrum(rows: Tensor) -> Tensor:
    """Singular values [min(N, D)] of rows [N, D], not centred, largest first, float64.

    They come from the smaller Gram matrix: what is below 1e-8 of the largest is rounding.
    """
    rows = rows.double()
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt().flip(0)


def rank_me(singular_values: Tensor, epsilon: float = 1e-7) -> float:
    """Exp of the entropy of a spectrum, between 1 and its length.

    As in the paper, `epsilon` is added after normalising, so the value may exceed the length by a millionth.
    """
    share = singular_values / singular_values.sum() + epsilon
    return (-(share * share.log()).sum()).exp().item()
