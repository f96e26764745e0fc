"""A term over the tokens of texts."""

from dataclasses import dataclass
from math import prod
from typing import Annotated

from torch import Tensor

from vlalign.registry import TOKEN_OBJECTIVES, TOKEN_WEIGHTERS
from vlalign.tasks.terms.width import check_scale
from vlalign.types import Context, TokenLogits, TokenObjective, Weighter


@dataclass(frozen=True, kw_only=True)
class TokenTerm:
    """One objective over each token with its weighters. `scale` multiplies the term."""

    objective: Annotated[TokenObjective, TOKEN_OBJECTIVES]
    weighters: tuple[Annotated[Weighter, TOKEN_WEIGHTERS], ...] = ()
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)

    def losses(self, features: TokenLogits, context: Context) -> Tensor:
        """[N], each times its weights, which have no gradient."""
        losses = self.objective(features)
        weights = [weighter(losses.detach(), context).detach() for weighter in self.weighters]
        return prod(weights, start=losses)
