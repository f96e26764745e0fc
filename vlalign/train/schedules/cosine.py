"""Warm-up, then half a cosine: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vlalign.registry import SCHEDULES


@SCHEDULES.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """`warmup`: fraction of all steps; `floor`: the multiple of the rate that it falls towards."""

    warmup: float = 0.03
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of the steps, at least 0 and below 1, got {self.warmup}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, got {self.floor}")

    def build(self, steps: int) -> Callable[[int], float]:
        """The multiple of the base rate at steps 1 to `steps`; never 0, so that no step is wasted."""
        warmup = round(self.warmup * steps)

        def multiple(step: int) -> float:
            if step <= warmup:
                return step / warmup
            done = (step - 1 - warmup) / (steps - warmup)  # 0 at the first step after the warm-up
            return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * done))

        return multiple
