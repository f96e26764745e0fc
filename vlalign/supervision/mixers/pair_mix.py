"""Pair-wise mixing of hard negatives, KaLM-Embedding-V2, Zhao et al. 2025, https://arxiv.org/abs/2506.20923."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.blend import beta, blend
from vlalign.registry import MIXERS
from vlalign.types import Context


@MIXERS.register("pair_mix")
@dataclass(frozen=True, kw_only=True)
class PairMix:
    """Each of a row's `hardest` negatives, mixed with another of them: lambda a + (1 - lambda) b, made unit.

    lambda ~ Beta(alpha, alpha). Partners and lambdas are drawn once a step for all rows, by the negatives'
    order of hardness, so that the loss does not depend on how processes share the rows. The paper's released
    training code mixes nothing; alpha is what is told of a sibling of the model.
    """

    hardest: int = 7
    alpha: int = 2

    def __post_init__(self) -> None:
        for name, least in (("hardest", 2), ("alpha", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def __call__(self, query: Tensor, hardest: Tensor, context: Context) -> Tensor:
        """Unit [Q, H, D], one a negative."""
        generator, count = context.generator(), hardest.shape[1]
        away = int(torch.randint(1, max(count, 2), (), generator=generator))
        return blend(hardest, hardest.roll(away, 1), beta((count,), self.alpha, self.alpha, generator))
