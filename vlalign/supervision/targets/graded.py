"""A key is the more relevant to a query, the more labels their rows share or the nearer their numbers are."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import TARGETS
from vlalign.types import Batch


@TARGETS.register("graded")
@dataclass(frozen=True, kw_only=True)
class Graded:
    """Relevance from 0 to 1; a row's own key has 1.

    `levels` names label fields, such as category and subcategory: the share of them that match, the row
    itself counted among them, so that another row never reaches 1. `value` names a field with one number a
    row instead: 1 - difference / `span`, at least 0.
    """

    levels: tuple[str, ...] = ()
    value: str | None = None
    span: float = 1.0

    def __post_init__(self) -> None:
        if bool(self.levels) == (self.value is not None):
            found = f"levels {list(self.levels)} and value {self.value}"
            raise ValueError(f"graded reads label fields or one field of numbers, got {found}; name one kind")
        if len(set(self.levels)) < len(self.levels) or "row" in self.levels:
            raise ValueError(f"levels must name each field once, and not the row, got {list(self.levels)}")
        if not self.span > 0:
            raise ValueError(f"span must be > 0, got {self.span}")

    @property
    def query_fields(self) -> tuple[str, ...]:
        """The row and the levels, or the value."""
        return ("row", *self.levels) if self.value is None else (self.value,)

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The same as of the query."""
        return self.query_fields

    def tile(self, query: Batch, key: Batch) -> Tensor:
        """Relevance [q, k]."""
        if self.value is not None:
            distance: Tensor = (query[self.value] - key[self.value]).abs()
            return (1 - distance / self.span).clamp(min=0)
        matches: Tensor = sum((query[name] == key[name]).float() for name in self.query_fields)
        return matches / len(self.query_fields)
