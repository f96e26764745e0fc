"""A term over the embeddings themselves."""

from dataclasses import dataclass
from typing import Annotated

from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.tasks.terms.width import check_scale
from vlalign.types import EmbeddingObjective


@dataclass(frozen=True, kw_only=True)
class EmbeddingTerm:
    """One objective over the embeddings themselves. `scale` multiplies the term."""

    objective: Annotated[EmbeddingObjective, EMBEDDING_OBJECTIVES]
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
