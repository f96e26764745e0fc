"""A term over the tokens of texts."""

from dataclasses import dataclass
from typing import Annotated

from vlalign.registry import TOKEN_OBJECTIVES
from vlalign.tasks.terms.width import check_scale
from vlalign.types import TokenObjective


@dataclass(frozen=True, kw_only=True)
class TokenTerm:
    """One objective over each token. `scale` multiplies the term."""

    objective: Annotated[TokenObjective, TOKEN_OBJECTIVES]
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
