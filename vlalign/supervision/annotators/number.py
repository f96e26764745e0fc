"""A field of numbers, for what compares rows by how far apart they are (as SupReMix, https://arxiv.org/abs/2309.16633)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, nan

import torch
from torch import Tensor

from vlalign.registry import ANNOTATORS
from vlalign.specs import Frozen
from vlalign.types import RecipeError


@ANNOTATORS.register("number")
@dataclass(frozen=True, kw_only=True)
class Number:
    """The numbers that are written in the field `by`, such that `low` is 0 and `high` is 1.

    A number outside of them is refused, and so is what is no number. Rows that cannot be read get 0.
    """

    by: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.high - self.low < inf:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")

    def __call__(self, rows: Frozen) -> Tensor:
        """Float32 [N], from 0 to 1. Raises RecipeError."""
        texts = rows.strings(self.by)
        numbers = [self.low if text is None else _number(text) for text in texts]
        wrong = [place for place, number in enumerate(numbers) if not self.low <= number <= self.high]
        if wrong:
            raise RecipeError(self._refused(rows.strings("id"), texts, wrong))
        return torch.tensor([(number - self.low) / (self.high - self.low) for number in numbers])

    def _refused(self, ids: Sequence[str | None], texts: Sequence[str | None], wrong: Sequence[int]) -> str:
        first, more = wrong[0], f", and so in {len(wrong) - 1} more rows" if len(wrong) > 1 else ""
        return (
            f"data.annotate: the row '{ids[first]}' has '{texts[first]}' in the field '{self.by}'{more}; a "
            f"number from {self.low:g} to {self.high:g} is asked for: correct the data, or set low and high"
        )


def _number(text: str) -> float:
    """What is written; not a number where it is none."""
    try:
        return float(text)
    except ValueError:
        return nan
