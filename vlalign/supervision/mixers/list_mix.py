"""List-wise mixing of hard negatives, KaLM-Embedding-V2, Zhao et al. 2025, https://arxiv.org/abs/2506.20923."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.registry import MIXERS
from vlalign.types import Context


@MIXERS.register("list_mix")
@dataclass(frozen=True, kw_only=True)
class ListMix:
    """One mixture of a row's `hardest` negatives, made unit: each by the softmax of its cosine with the row.

    `temperature` divides the cosines; the lower, the nearer the mixture is to the hardest negative. The
    gradient passes through the shares too. The paper's released training code mixes nothing.
    """

    hardest: int = 7
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.hardest < 1:
            raise ValueError(f"hardest must be >= 1, got {self.hardest}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def __call__(self, query: Tensor, hardest: Tensor, context: Context) -> Tensor:
        """Unit [Q, 1, D]."""
        cosine = torch.einsum("qd,qhd->qh", query, hardest)
        shares = (cosine / self.temperature).softmax(1)
        return normalize(torch.einsum("qh,qhd->qd", shares, hardest), dim=-1)[:, None]
