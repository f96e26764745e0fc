"""A candidate is as relevant to its query as the data say: by a label, or by a teacher's number."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import TARGETS
from vlalign.types import Batch


@TARGETS.register("given")
@dataclass(frozen=True, kw_only=True)
class Given:
    """`field`: a number that candidates come with. What is above 0 is a positive."""

    field: str = "label"

    own = True  # a number of a candidate is about its own query alone
    query_fields = ()

    @property
    def key_fields(self) -> tuple[str, ...]:
        """The field."""
        return (self.field,)

    def tile(self, query: Batch, key: Batch) -> Tensor:
        """Relevance [q, k]."""
        relevance: Tensor = key[self.field]
        return relevance
