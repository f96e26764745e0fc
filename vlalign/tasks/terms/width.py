"""How much a part of a loss counts, and on which part of the embeddings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite

from torch.nn.functional import normalize

from vlalign.types import Embeddings


@dataclass(frozen=True, kw_only=True)
class Width:
    """The first `dim` numbers of an embedding, made unit again, and how much the loss on them counts."""

    dim: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ValueError(f"dim must be >= 1, got {self.dim}")
        check_scale("weight", self.weight)


def cut(features: Embeddings, widths: Sequence[Width]) -> Iterator[tuple[float, Embeddings]]:
    """Weights, and the embeddings cut to each width; whole ones are unit rows already. No widths: whole."""
    whole = features.query.shape[1]
    for width in widths or [Width(dim=whole)]:
        query, key = features.query, features.key
        if width.dim < whole:
            query, key = (normalize(rows[:, : width.dim], dim=-1) for rows in (query, key))
        yield width.weight, replace(features, query=query, key=key)


def check_widths(widths: Sequence[Width], terms: bool, rescalers: bool) -> None:
    """Refuse widths that cannot mean anything. Raises ValueError."""
    dims = [width.dim for width in widths]
    if not terms or len(set(dims)) < len(dims):
        why = f"a width is named twice, in {dims}" if terms else "there are no terms to cut"
        raise ValueError(f"matryoshka: {why}")
    if rescalers:
        raise ValueError("matryoshka: a weighter that tries steps learns at one width; leave one out")


def check_scale(name: str, value: float) -> None:
    """Raises ValueError unless it is a weight."""
    if not (isfinite(value) and value > 0):
        raise ValueError(f"{name} must be > 0 and finite, got {value}")
