"""Leave out likely false negatives, as the positive-aware filter of Moreira et al. 2024, https://arxiv.org/abs/2407.15831."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlalign.ops.reductions import Expected
from vlalign.registry import SELECTORS


@SELECTORS.register("false_negative")
@dataclass(frozen=True, kw_only=True)
class FalseNegative:
    """A negative counts unless its cosine reaches that of the row's positives (their mean) plus `margin`.

    Rows without a positive keep all their pairs: they are compared with NaN.
    """

    margin: float = 0.1

    fields = ()
    reductions = {"positive": Expected(temperature=1.0)}

    def __post_init__(self) -> None:
        if not -2 <= self.margin <= 2:
            raise ValueError(f"margin must be between -2 and 2, a difference of cosines, got {self.margin}")

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Bool [q, k]."""
        kept: Tensor = ~(cosine >= reductions["positive"] + self.margin)
        return kept | (targets > 0)
