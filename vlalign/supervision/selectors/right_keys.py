"""What is right for somebody alone is a key, in-batch negatives: Karpukhin et al. 2020, arXiv:2004.04906."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.registry import SELECTORS


@SELECTORS.register("right_keys")
@dataclass(frozen=True)
class RightKeys:
    """A pair counts where the key is right for the query that it was drawn for: nobody's wrong candidates do.

    For a term beside one over `own_candidates`. A text that a judge has taken out of a query's list may still
    be another query's hard negative, and without this a negative of the first as well.
    """

    fields = ("row", "query")
    reductions: ClassVar[Mapping[str, Any]] = {}

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Bool [q, k]; of queries themselves both fields are alike."""
        right: Tensor = (row["row"] == row["query"]) & (column["row"] == column["query"])
        return right
