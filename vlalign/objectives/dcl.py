"""Decoupled contrastive loss, Yeh et al. 2021, https://arxiv.org/abs/2110.06848, eq. 6."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.reductions import NEGATIVES, Expected, LogSumExp, Reduction
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("dcl")
@dataclass(frozen=True, kw_only=True)
class DCL:
    """InfoNCE without the positive in the denominator: its logarithm minus log(1 - p).

    `temperature`: its own, on cosines, in place of the model's scale and bias. `sigma` makes it DCLW (eq. 7;
    0.5 in the paper): the positive's weight is 2 - exp(cosine / sigma) over that of the average row of all
    ranks, so that far positives count more. The weight may be negative, and has no gradient.
    """

    sigma: float | None = None
    temperature: float | None = None

    def __post_init__(self) -> None:
        for name in ("sigma", "temperature"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")

    @property
    def coupled(self) -> bool:
        """Whether rows are compared: closeness is, with the mean of all."""
        return self.sigma is not None

    @property
    def reductions(self) -> dict[str, Reduction]:
        """The positives' score and the log-sum-exp of the negatives."""
        asked: dict[str, Reduction] = {
            "positive": Expected(temperature=self.temperature),
            "negatives": LogSumExp(over=NEGATIVES, temperature=self.temperature),
        }
        return asked if self.sigma is None else asked | {"closeness": Expected(temperature=self.sigma)}

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        if self.sigma is None:
            return rows["negatives"] - rows["positive"]
        closeness = rows["closeness"].detach().masked_fill(~rows.valid, -torch.inf)
        everyones = rows.everyones(closeness)
        count = (everyones > -torch.inf).sum(dtype=closeness.dtype)
        average = everyones.logsumexp(0) - count.log()
        weights = (2 - (closeness - average).exp()).where(rows.valid, 0)
        return rows["negatives"] - weights * rows["positive"]
