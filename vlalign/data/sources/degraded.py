"""Pictures made worse, each by as much as a seed says."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image, ImageFilter

from vlalign.data.augment import SIDE
from vlalign.data.subset import Subset
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits, Sample, Source

LARGEST = 100.0  # of each strength, beyond which nothing is left of a picture

Range = tuple[float, float]


@SOURCES.register("degraded")
@dataclass(frozen=True, kw_only=True)
class Degraded:
    """`source` with its pictures darkened, lit and blurred, by strengths drawn evenly from their ranges.

    `gamma`: what values from 0 to 1 are raised to; above 1 is darker. `exposure`: stops, each a factor of 2
    on values, which are cut at white. `blur`: widths of a Gaussian, in pixels of a picture whose shorter side
    is 224. Of a row they are the same each time: drawn by `seed` and its place.
    """

    source: Annotated[SourceSpec, SOURCES]
    gamma: Range = (1.0, 1.0)
    exposure: Range = (0.0, 0.0)
    blur: Range = (0.0, 0.0)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in {"gamma": self.gamma, "exposure": self.exposure, "blur": self.blur}.items():
            if not -LARGEST <= low <= high <= LARGEST:
                raise ValueError(f"{name} must be low <= high, and no more than {LARGEST}, got {[low, high]}")
        if not self.gamma[0] > 0:
            raise ValueError(f"gamma must be > 0, got {list(self.gamma)}")
        if self.blur[0] < 0:
            raise ValueError(f"blur must be >= 0, got {list(self.blur)}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")

    def build(self, limits: Limits = Limits()) -> "DegradedRows":
        """Build the source; pictures are changed as they are read. Raises DataError."""
        return DegradedRows(self.source.build(limits), self)


class DegradedRows(Subset):
    """A Source over another, every row of it."""

    def __init__(self, source: Source, how: Degraded) -> None:
        super().__init__(source, range(len(source)), {}, {}, what="degraded")
        self.how = how

    def __getitem__(self, index: int) -> Sample:
        """One row, its picture changed. Raises BadRow."""
        row = super().__getitem__(index)
        draw = np.random.default_rng([self.how.seed, index])
        gamma, stops, width = (draw.uniform(*x) for x in (self.how.gamma, self.how.exposure, self.how.blur))
        return {**row, "image": degrade(row["image"], gamma, stops, width)}


def degrade(image: Image.Image, gamma: float = 1.0, stops: float = 0.0, width: float = 0.0) -> Image.Image:
    """An RGB picture, blurred first, as if it had been taken so."""
    if width:
        image = image.filter(ImageFilter.GaussianBlur(width * min(image.size) / SIDE))
    if gamma == 1 and stops == 0:
        return image
    values = (np.arange(256) / 255) ** gamma * 2.0**stops
    return image.point((values.clip(0, 1) * 255).round().astype(int).tolist() * 3)
