"""Only a query's own candidates count, as where a judge has scored them: Gu et al. 2025, arXiv:2510.13515."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.registry import SELECTORS


@SELECTORS.register("own_candidates")
@dataclass(frozen=True)
class OwnCandidates:
    """A pair counts where the key was drawn for the query: for a term beside one that all keys are for."""

    own = True  # targets that are numbers of a query's own candidates mean something
    fields = ("query",)
    reductions: ClassVar[Mapping[str, Any]] = {}

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Bool [q, k]."""
        own: Tensor = row["query"] == column["query"]
        return own
