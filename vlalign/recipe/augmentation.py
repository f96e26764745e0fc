"""What a recipe may say about changing training rows. `vlalign.data.{augment, calibration}` do it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A turn, a shift and a zoom, drawn evenly; what comes from outside the picture is black.

    `degrees`: the largest turn either way; `translate`: the largest shift, as a fraction of each side;
    `scale`: smallest and largest zoom.
    """

    degrees: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise ValueError(f"degrees must be between 0 and 180, got {self.degrees}")
        if not 0 <= self.translate <= 1:
            raise ValueError(f"translate must be between 0 and 1, got {self.translate}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale must be 0 < low <= high, got {list(self.scale)}")


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """Changes of colour, in random order, to a share `probability` of the pictures.

    A strength s of `brightness`, `contrast` or `saturation` draws a factor from 1 - s to 1 + s; `hue` turns
    the colour circle by at most that part of it, either way. 0: not at all.
    """

    probability: float = 1.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __post_init__(self) -> None:
        _shares(self, "probability", "brightness", "contrast", "saturation")
        if not 0 <= self.hue <= 0.5:
            raise ValueError(f"hue must be between 0 and 0.5, got {self.hue}")


@dataclass(frozen=True, kw_only=True)
class Blur:
    """A Gaussian over a share `probability` of the pictures.

    `sigma`: its smallest and largest width, in pixels of a picture whose shorter side is 224; others are
    blurred in proportion, for they are made that small, or large, only afterwards.
    """

    probability: float = 1.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        _shares(self, "probability")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise ValueError(f"sigma must be 0 < low <= high, got {list(self.sigma)}")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What is done to a caption: one thing or none.

    `swap`: the share of captions in which two words change places; `drop`: the share that loses words, each
    with probability `dropped`, never all.
    """

    swap: float = 0.0
    drop: float = 0.0
    dropped: float = 0.2

    def __post_init__(self) -> None:
        _shares(self, "swap", "drop", "dropped")
        if self.swap + self.drop > 1:
            raise ValueError(f"swap and drop must be at most 1 together, got {self.swap} and {self.drop}")


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to a training row, in this order, anew each epoch; null, 0 and false: not at all.

    `scale`: area of the random crop, of shape `ratio`; `flip`: mirror half of the pictures; `grey`: the share
    that loses its colours; `text`: what is done to captions. `teacher`: where a task compares with averaged
    weights, they see the `same` picture as the model, or the `whole` one, to which nothing was done.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = False
    affine: Affine | None = None
    jitter: Jitter | None = None
    grey: float = 0.0
    blur: Blur | None = None
    text: Words | None = None
    teacher: Literal["same", "whole"] = "same"

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {list(self.ratio)}")
        _shares(self, "grey")

    @property
    def identity(self) -> bool:
        """Whether it leaves pictures as they are, so that a locked tower's features may be cached."""
        some = self.flip or self.affine or self.jitter or self.grey or self.blur
        return self.scale == (1.0, 1.0) and not some


@dataclass(frozen=True, kw_only=True)
class Calibrate:
    """Virtual pictures for rare classes: points of their Gaussians, made like those of common classes.

    Of the rows of rare classes a `share`, anew each epoch, get a point of their class in place of what the
    locked image tower makes of their picture. The label `field` is the class; one of `head` rows is common. A
    rare one's mean and covariance are its own with weight 1 - `blend`, the rest being those of the `near`
    common classes of the nearest means; to the covariance comes `shrink` times its mean variance on every
    axis. `neighbours`: of the local outlier factor, by which rows are left out (0: none). Defaults are ours.
    """

    field: str
    head: int
    share: float = 0.5
    near: int = 3
    blend: float = 0.5
    shrink: float = 0.1
    neighbours: int = 20

    def __post_init__(self) -> None:
        for name, least in (("head", 1), ("near", 1), ("neighbours", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        _shares(self, "share", "blend")
        if not self.shrink >= 0:
            raise ValueError(f"shrink must be >= 0, got {self.shrink}")


def _shares(augment: object, *fields: str) -> None:
    for name in fields:
        if not 0 <= getattr(augment, name) <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {getattr(augment, name)}")
