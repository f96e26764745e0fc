"""The modality gap: Liang et al. 2022, https://arxiv.org/abs/2203.02053, section 3.1."""

from torch import Tensor


def modality_gap(query: Tensor, key: Tensor) -> float:
    """Distance between the centres of two sides' unit rows, [N, D] and [M, D]; between 0 and 2."""
    return (query.double().mean(0) - key.double().mean(0)).square().sum().sqrt().item()
