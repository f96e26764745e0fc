"""What a recipe of `vlalign judge` says of ratings by several judges of several things."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from vlalign.recipe.offline import named


@dataclass(frozen=True, kw_only=True)
class Rating:
    """Whose a measurement is, and what it rates. `rater`: a model or a person. `item`: a rubric.

    `scale`: the lowest and the highest that it can be, and what is beyond counts as that end; or `log_odds`,
    of which the probability is taken, from 0 to 1.
    """

    rater: str
    item: str = "all"
    scale: tuple[float, float] | Literal["log_odds"] = (1.0, 5.0)

    def __post_init__(self) -> None:
        named(self, "rater", "item")
        if self.scale == "log_odds":
            return
        low, high = self.scale
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError(f"scale must be finite, lowest < highest, got {list(self.scale)}")


@dataclass(frozen=True, kw_only=True)
class Facets:
    """The many-facet Rasch model: several `ratings` of a pair are one score, freed from who was severe.

    Kennedy et al. 2020, https://arxiv.org/abs/2009.10277. `ratings`: by the name of a number, or of a judge
    as `judged.json` tells it (the second of a kind is called `likert 2`). Each is made one of `categories`:
    where its scale has as many whole numbers, as 1 to 5 has 5, it is rounded to one of them, and else the
    scale is cut into as many equal widths. `partial_credit`: steps between categories are each item's own.
    """

    ratings: Mapping[str, Rating]
    categories: int = 5
    partial_credit: bool = False

    def __post_init__(self) -> None:
        if len(self.ratings) < 2:
            raise ValueError(f"ratings must be at least two, got {', '.join(self.ratings) or 'none'}")
        pairs = [(each.rater, each.item) for each in self.ratings.values()]
        if again := next((each for each in pairs if pairs.count(each) > 1), None):
            raise ValueError(f"ratings must name a rater and an item once, and {again} stands twice")
        if self.categories < 2:
            raise ValueError(f"categories must be >= 2, got {self.categories}")
