"""Every row once an epoch, in an order drawn anew for each."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlalign.data.sampler import even_end
from vlalign.registry import SAMPLERS
from vlalign.specs import Ints


@SAMPLERS.register("random")
@dataclass(frozen=True, kw_only=True)
class Random:
    """Batches are full but for the last two of an epoch, which share what is left evenly."""

    by: ClassVar[None] = None

    def bounds(self, labels: Ints, batch: int) -> Ints:
        """Where steps begin and end, [steps + 1]."""
        return even_end(len(labels), batch)

    def order(self, labels: Ints, batch: int, random: np.random.Generator) -> Ints:
        """A permutation [rows]."""
        return random.permutation(len(labels))

    def left_out(self, labels: Ints, batch: int) -> str:
        """That every step is smaller than was asked for, where the data is."""
        rows = len(labels)
        if batch <= rows:
            return ""
        return f"data.batch: {batch} rows, the data has {rows}: every step sees all {rows}"
