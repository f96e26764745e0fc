"""How much a part of a loss counts, and on which part of the embeddings."""

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True, kw_only=True)
class Width:
    """The first `dim` numbers of an embedding, made unit again, and how much the loss on them counts."""

    dim: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be >= 1, got {self.dim}")
        check_scale("weight", self.weight)


def check_scale(name: str, value: float) -> None:
    """Raises ValueError unless it is a weight."""
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be > 0 and finite, got {value}")
