"""CPRD, Chen et al. 2024, https://arxiv.org/abs/2407.07479: a teacher's order of the negatives that are hard.

Departures: which negatives are valid, and which candidate is the positive, are our rules; equal negatives
share their places, where the paper has one order.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows, UserError


@OBJECTIVES.register("cprd")
@dataclass(frozen=True, kw_only=True)
class CPRD:
    """Each valid negative is chosen, by softmax of logits / temperature, against all that are no better.

    Minus the sum of the log-probabilities of these choices. The targets are a teacher's probabilities, from 0
    to 1, of each candidate by itself, as of yes and no; logits are refused where they leave that range. The
    positive is the candidate that the teacher finds best, whatever its label, and is not in the list; so are
    its equals. A negative is valid if its probability is at least `valid` times the positive's; the others
    are met by those above them, and not placed. Equal ones are each chosen against all of their probability
    and below, as `list_mle` treats ties.

    A row without a valid negative is 0. It compares no negative with a positive: put a contrast beside it.
    A selector's weights count as yes or no.
    """

    temperature: float = 1.0
    valid: float = 0.1

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if not 0 <= self.valid <= 1:
            raise ValueError(f"valid must be >= 0 and <= 1, got {self.valid}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]. Raises UserError for targets that are no probabilities."""
        dense: DenseRows = rows.dense()
        teacher = wide(dense.targets)
        if (wrong := teacher[dense.mask & ~((teacher >= 0) & (teacher <= 1))]).numel():
            raise UserError(
                f"cprd: the targets must be a teacher's probabilities, from 0 to 1, found {wrong[0]:g}; name "
                "a field that holds them (a logit x is the probability 1 / (1 + exp(-x)))"
            )
        best = teacher.masked_fill(~dense.mask, 0).sort(1, descending=True).values[:, :1]
        listed = dense.mask & (teacher < best)
        targets, order = teacher.masked_fill(~listed, torch.inf).contiguous().sort(1)
        scores = wide(dense.logits).masked_fill(~listed, 0).gather(1, order) / self.temperature
        placed = listed.gather(1, order) & (targets >= self.valid * best)
        last = torch.searchsorted(targets, targets, right=True) - 1  # of those equal to it
        against = scores.logcumsumexp(1).gather(1, last)
        return (against - scores).where(placed, 0).sum(1)
