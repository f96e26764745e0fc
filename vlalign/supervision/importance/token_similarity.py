"""How near a token is to the others: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass


@IMPORTANCES.register("token_similarity")
@dataclass(frozen=True, kw_only=True)
class TokenSimilarity:
    """The mean squared distance of its hidden state before a layer to those of the text, reversed.

    The authors' code has both directions; here what is like the others matters.
    """

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T]."""
        own = seen.before.float()
        return -torch.cdist(own, own, compute_mode="donot_use_mm_for_euclid_dist").square().mean(1)
