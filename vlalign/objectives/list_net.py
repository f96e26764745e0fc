"""ListNet, Cao et al. 2007, https://doi.org/10.1145/1273496.1273513, with top-one probabilities."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("list_net")
@dataclass(frozen=True, kw_only=True)
class ListNet:
    """Cross-entropy of softmax(logits / temperature) with softmax(relevance / target_temperature).

    `info_nce` divides relevance by its sum, so that irrelevant candidates have no share; here they have one,
    and with labels of 0 and 1 a positive's is only e times theirs. A small `target_temperature` leaves all to
    the most relevant: with one of them the two are then equal. The gradient is that of `kl`, but for a row of
    one grade, which here has nothing to learn and is 0. A selector's weights count as yes or no.
    """

    temperature: float = 1.0
    target_temperature: float = 1.0

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        for name in ("temperature", "target_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        dense: DenseRows = rows.dense()
        scores = wide(dense.logits)
        targets = dense.targets.to(scores.dtype)
        low = torch.finfo(scores.dtype).min
        logs = (scores / self.temperature).masked_fill(~dense.mask, low).log_softmax(1)
        shares = (targets / self.target_temperature).masked_fill(~dense.mask, low).softmax(1)
        least = targets.masked_fill(~dense.mask, torch.inf).sort(1).values[:, :1]
        some = (dense.mask & (targets > least)).any(1, keepdim=True)
        return -(shares * logs).where(dense.mask & some, 0).sum(1)
