"""Leave out pairs of rows that a frozen encoder cannot tell apart, which are no sure negatives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.ops.likeness import cosines
from vlalign.registry import SELECTORS


@SELECTORS.register("near_duplicate")
@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """A pair does not count when the frozen unit features of its rows have a cosine of `threshold` or more.

    `field` holds the features of every row. A row and its own key always count.
    """

    field: str = "image_features"
    threshold: float = 0.95

    reductions: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if not -1 < self.threshold <= 1:
            raise ValueError(f"threshold must be a cosine > -1 and <= 1, got {self.threshold}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The row and its features."""
        return ("row", self.field)

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Bool [q, k]."""
        own: Tensor = row["row"] == column["row"]
        return own | (cosines(row[self.field], column[self.field]) < self.threshold)
