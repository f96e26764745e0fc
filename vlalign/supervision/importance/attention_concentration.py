"""How much a token is attended to: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import IMPORTANCES
from vlalign.specs import LayerPass


@IMPORTANCES.register("attention_concentration")
@dataclass(frozen=True, kw_only=True)
class AttentionConcentration:
    """The sum over heads and over the tokens that attend.

    In a causal model the first tokens are seen by most. `per_reader`: the sum is divided by how many tokens
    can attend to one, as the authors' code can; theirs and ours do not unless asked.
    """

    per_reader: bool = False

    attends = True

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T]."""
        assert seen.attention is not None  # it says that it attends
        total = seen.attention.float().sum((0, 1))
        if self.per_reader:
            total = total / (seen.attention > 0).any(0).sum(0).clamp(min=1)
        return total
