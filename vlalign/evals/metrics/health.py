"""How well embeddings use their space, without labels. All in float64; rows are [N, D]."""

import torch
from torch import Tensor


def spectrum(rows: Tensor) -> Tensor:
    """Singular values [min(N, D)], largest first, from the smaller Gram matrix; rows are not centred."""
    rows = rows.double()
    gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
    return torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().flip(0)


def effective_rank(singular_values: Tensor, epsilon: float = 1e-7) -> float:
    """RankMe, Garrido et al. 2022, https://arxiv.org/abs/2210.02885, eq. 1: exp of the entropy of the spectrum.

    As in the paper, `epsilon` is added after normalising, so the value may exceed min(N, D) by about a millionth.
    """
    share = singular_values / singular_values.sum() + epsilon
    return (-(share * share.log()).sum()).exp().item()


def alignment(query: Tensor, key: Tensor, alpha: float = 2.0) -> float:
    """Mean distance of true pairs to the power `alpha`: Wang and Isola 2020, https://arxiv.org/abs/2005.10242, sec. 4."""
    return (query.double() - key.double()).norm(dim=1).pow(alpha).mean().item()


def uniformity(rows: Tensor, t: float = 2.0, block: int = 1024) -> float:
    """Log mean over different rows of exp(-t distance^2): Wang and Isola 2020, sec. 4; memory is `block` x N."""
    rows = rows.double()
    parts = []
    for start, part in zip(range(0, len(rows), block), rows.split(block), strict=True):
        squares = torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist").square()
        index = torch.arange(len(part))
        squares[index, start + index] = torch.inf  # a row is no pair with itself
        parts.append((-t * squares).logsumexp((0, 1)))
    pairs = torch.tensor(len(rows) * (len(rows) - 1), dtype=torch.float64)
    return (torch.stack(parts).logsumexp(0) - pairs.log()).item()


def modality_gap(query: Tensor, key: Tensor) -> float:
    """Distance of the centres of two modalities: Liang et al. 2022, https://arxiv.org/abs/2203.02053, sec. 3.1."""
    return (query.double().mean(0) - key.double().mean(0)).norm().item()
