"""How long the hidden state before a layer is: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass


@IMPORTANCES.register("activation_norm")
@dataclass(frozen=True, kw_only=True)
class ActivationNorm:
    """The Euclidean norm."""

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T]."""
        found: Tensor = seen.before.float().norm(dim=1)
        return found
