"""Dynamic loss-based reweighting, Sow et al. 2025, https://arxiv.org/abs/2502.06733: softmax(f(loss) / r)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.weighing import everyones_valid, table_of
from vlalign.registry import WEIGHTERS
from vlalign.types import Context

Strategy = Literal["linupper", "quadratic", "extremes", "upper"]
STRATEGIES: Mapping[Strategy, Callable[[Tensor], Tensor]] = {  # of h in [-1, 1], all from 0 to 1
    "linupper": lambda h: (h + 1).clamp(max=1),
    "quadratic": lambda h: 1 - h.square(),
    "extremes": lambda h: h.abs(),
    "upper": lambda h: (h + 1) / 2,
}


@WEIGHTERS.register("dynamic")
@dataclass(frozen=True, kw_only=True)
class Dynamic:
    """Where a loss lies between the smallest and the largest of the step says how much it counts.

    h goes from -1 to 1. `linupper` plays down the lower half, `quadratic` both ends, `extremes` the middle,
    and `upper` favours the higher loss throughout. `temperature` (r): weights differ by exp(1 / r) at most,
    so 1, the paper's, hardly acts; 0.3 and 0.1 do. The first `warmup` steps are unweighted. `quantile`: which
    of the losses counts as the largest; below 1, one outlier does not press all others to the low end.

    Weights average one over the valid rows of all ranks, and have no gradient. Each direction's losses are
    weighed on their own. The paper's delta is 1 here: but for `quadratic`, where it cancels, it scales f like
    1 / r. Its released code multiplies by each row's share of tokens as well.
    """

    strategy: Strategy = "linupper"
    temperature: float = 1.0
    warmup: int = 1000
    quantile: float = 1.0

    coupled = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.warmup < 0:
            raise ValueError(f"warmup must be >= 0, got {self.warmup}")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile must be > 0 and <= 1, got {self.quantile}")

    @torch.no_grad()
    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [Q]."""
        if context.step <= self.warmup:
            return torch.ones_like(losses)
        rows = table_of(context)
        every = everyones_valid(losses, rows)
        if not len(every):
            return torch.zeros_like(losses)
        low, high = every.min(), every.quantile(self.quantile)

        def strength(x: Tensor) -> Tensor:
            middle, width = (low + high) / 2, (high - low).clamp(min=1e-6)
            return STRATEGIES[self.strategy](2 * (x.clamp(low, high) - middle) / width) / self.temperature

        share = (strength(wide(losses)) - strength(every).logsumexp(0)).exp()
        return (share * len(every)).masked_fill(~rows.valid, 0)
