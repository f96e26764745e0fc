"""How little a layer changes a hidden state: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass


@IMPORTANCES.register("activation_difference")
@dataclass(frozen=True, kw_only=True)
class ActivationDifference:
    """The Euclidean distance between before and after, reversed: steady tokens matter."""

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T]."""
        change: Tensor = (seen.after.float() - seen.before.float()).norm(dim=1)
        return -change
