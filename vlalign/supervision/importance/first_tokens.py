"""The first tokens of a text: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass


@IMPORTANCES.register("first_tokens")
@dataclass(frozen=True, kw_only=True)
class FirstTokens:
    """1 for the first `share` of the tokens, rounded up, 0 for the others.

    Where GPTQ is weighted, the others keep the lowest weight; in the paper they count for nothing.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T]."""
        places = torch.arange(len(seen.ids), device=seen.ids.device)
        return (places < self.share * len(seen.ids)).float()
