"""What a recipe of `vlalign judge` may say of pairs that are left unjudged."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """A pair whose calibrated probability is too near to one half is left unjudged.

    `coverage`: the share that is judged of those that tell of a judge, the most certain first; or `distance`:
    the least one from one half, 0 to 0.5. Each candidate gets the number `..._certain`, 1 or 0; its score
    stays. `choose` suspects none that is left unjudged, and lets no such positive set the bound.
    """

    coverage: float | None = None
    distance: float | None = None

    def __post_init__(self) -> None:
        if (self.coverage is None) == (self.distance is None):
            raise ValueError("name either the coverage or the distance")
        if self.coverage is not None and not 0 < self.coverage <= 1:
            raise ValueError(f"coverage must be above 0 and at most 1, got {self.coverage}")
        if self.distance is not None and not 0 <= self.distance <= 0.5:
            raise ValueError(f"distance must be between 0 and 0.5, got {self.distance}")
