"""Pictures of another source pasted at known places: what says where in a picture a text belongs."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image

from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import DataError, Limits, Sample, Source

CLUTTER = 12  # random colours along a side of the ground
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@SOURCES.register("collage")
@dataclass(frozen=True, kw_only=True)
class Collage:
    """A row for each picture in a collage: the collage, and that picture's captions and fields.

    `collages`: how many; each has from `least` to `most` pictures of `source`, `part` pixels a side, on
    blurred colours of `size` pixels a side. They do not overlap, and no picture is twice in one. All is drawn
    by `seed`. The field `collage` is the same for rows of one, and `box` is the place in pixels, as
    `left top right bottom`.
    """

    source: Annotated[SourceSpec, SOURCES]
    collages: int = 1000
    least: int = 2
    most: int = 4
    size: int = 256
    part: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("collages", 1), ("part", 1), ("size", self.part), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not 1 <= self.least <= self.most <= (self.size // self.part) ** 2:
            raise ValueError(
                f"a collage of {self.size} pixels has room for {(self.size // self.part) ** 2} parts of "
                f"{self.part}; got least {self.least} and most {self.most}"
            )

    def build(self, limits: Limits = Limits()) -> "Collages":
        """Build the source; nothing is decoded. Raises DataError."""
        return Collages(self, self.source.build(limits))


class Part(NamedTuple):
    """A row: which collage, and what of the source is where in it."""

    collage: int
    row: int
    box: Box


class Collages:
    """A Source of a row for each picture in each collage, drawn when it is read."""

    def __init__(self, spec: Collage, source: Source) -> None:
        """Raises DataError where the source has fewer rows than a collage may hold."""
        if len(source) < spec.most:
            raise DataError(f"a collage holds up to {spec.most} pictures, and there are {len(source)}")
        self.spec, self.source = spec, source
        self.licences, self.skipped = source.licences, source.skipped
        self.collages = [self._laid(number) for number in range(spec.collages)]
        self.parts = [part for parts in self.collages for part in parts]

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Sample:
        """One collage, with the captions and fields of one of its pictures. Raises BadRow."""
        spec, part = self.spec, self.parts[index]
        random = np.random.default_rng([spec.seed, part.collage, 1])
        colours = Image.fromarray(random.integers(0, 256, (CLUTTER, CLUTTER, 3), dtype=np.uint8))
        image = colours.resize((spec.size, spec.size), Image.Resampling.BICUBIC)
        for each in self.collages[part.collage]:
            image.paste(self.source[each.row]["image"].resize((spec.part, spec.part)), each.box)
        return {"image": image, "captions": self.captions(index), **self.fields(index)}

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption of the picture of a row; nothing is decoded."""
        return self.source.captions(self.parts[index].row)

    def fields(self, index: int) -> dict[str, str]:
        """`id`, `collage`, `box` and the string fields of the picture of a row; nothing is decoded."""
        part = self.parts[index]
        own = self.source.fields(part.row)
        place = {"collage": str(part.collage), "box": " ".join(map(str, part.box))}
        return {**own, **place, "id": f"{part.collage}/{own['id']}"}

    def _laid(self, number: int) -> list[Part]:
        """Pictures without return, each somewhere in its own cell of a grid."""
        spec, random = self.spec, np.random.default_rng([self.spec.seed, number])
        grid = spec.size // spec.part
        count = int(random.integers(spec.least, spec.most + 1))
        rows = random.choice(len(self.source), count, replace=False)
        cells = random.choice(grid**2, count, replace=False)
        corners = np.stack([cells % grid, cells // grid], 1) * (spec.size // grid)
        corners += random.integers(0, spec.size // grid - spec.part + 1, (count, 2))
        return [
            Part(number, int(row), (x, y, x + spec.part, y + spec.part))
            for row, (x, y) in zip(rows, corners.tolist(), strict=True)
        ]
