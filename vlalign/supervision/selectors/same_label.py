"""Leave out pairs of other rows with the same label, which are no sure negatives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.registry import SELECTORS


@SELECTORS.register("same_label")
@dataclass(frozen=True, kw_only=True)
class SameLabel:
    """A pair of two rows that share the label `field` does not count, even as a positive.

    A row and its own key always count.
    """

    field: str = "concept"

    reductions: ClassVar[Mapping[str, Any]] = {}

    @property
    def fields(self) -> tuple[str, ...]:
        """The row and the label."""
        return ("row", self.field)

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Bool [q, k]."""
        kept: Tensor = (row["row"] == column["row"]) | (row[self.field] != column[self.field])
        return kept
