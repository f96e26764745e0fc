"""How rare a token is: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass


@IMPORTANCES.register("token_frequency")
@dataclass(frozen=True, kw_only=True)
class TokenFrequency:
    """How often it stands in the texts that are read, reversed: rare tokens matter."""

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T]."""
        return -seen.counts.float()
