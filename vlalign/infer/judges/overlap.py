"""The share of a query's words that a candidate has: what every judge must beat."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vlalign.data.overlap import word_overlap
from vlalign.registry import JUDGES
from vlalign.types import Item


@JUDGES.register("overlap")
@dataclass(frozen=True)
class Overlap:
    """Of distinct words, without capitals: 0 to 1. It is its own judge."""

    width = 1
    digest = "overlap"

    def build(self) -> "Overlap":
        """Nothing to load."""
        return self

    def measure(self, query: Item, candidates: Sequence[Item]) -> Iterator[Mapping[int, Sequence[float]]]:
        """Pictures have no words."""
        yield {at: [word_overlap(query.text, each.text)] for at, each in enumerate(candidates)}
