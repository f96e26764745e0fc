"""A key is relevant to a query when they belong to one row, or share a label such as the caption."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.registry import TARGETS
from vlalign.types import Batch


@TARGETS.register("identity")
@dataclass(frozen=True, kw_only=True)
class Identity:
    """Positive when any field of `same` matches; a row is always its own positive.

    Every row has `row` and `caption`; other labels come from the source or from an annotation.
    """

    same: tuple[str, ...] = ("row",)

    def __post_init__(self) -> None:
        if len(set(self.same)) < len(self.same):
            raise ValueError(f"same names a field twice: {', '.join(self.same)}")

    @property
    def query_fields(self) -> tuple[str, ...]:
        """The row, then what else makes a positive."""
        return tuple(dict.fromkeys(("row", *self.same)))

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The same as of the query."""
        return self.query_fields

    def tile(self, query: Batch, key: Batch) -> Tensor:
        """Relevance [q, k], bool."""
        relevant: Tensor = query["row"] == key["row"]
        for name in self.query_fields[1:]:
            relevant = torch.logical_or(relevant, query[name] == key[name])
        return relevant
