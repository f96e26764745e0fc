"""ListMLE, Xia et al. 2008, https://doi.org/10.1145/1390156.1390306: likelihood of the order by relevance.

Departure: equal candidates share their places, where the paper has one order, and places are averaged over.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("list_mle")
@dataclass(frozen=True, kw_only=True)
class ListMLE:
    """Each candidate is chosen, by softmax of logits / temperature, against all that are no more relevant.

    Minus the mean log-probability (Plackett-Luce) of the candidates placed. Those of equal relevance are each
    chosen against all of their grade and below, as Breslow's likelihood treats ties; those of a row's lowest
    grade have nothing below them and are not placed. So labels of 0 and 1 give InfoNCE, and a row of one
    grade is 0. A selector's weights count as yes or no.
    """

    temperature: float = 1.0

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        dense: DenseRows = rows.dense()
        targets, order = wide(dense.targets).masked_fill(~dense.mask, torch.inf).contiguous().sort(1)
        scores = wide(dense.logits).masked_fill(~dense.mask, 0).gather(1, order) / self.temperature
        placed = dense.mask.gather(1, order) & (targets > targets[:, :1])
        last = torch.searchsorted(targets, targets, right=True) - 1  # of its own grade
        against = scores.logcumsumexp(1).gather(1, last)
        return (against - scores).where(placed, 0).sum(1) / placed.sum(1).clamp(min=1)
