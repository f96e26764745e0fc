"""Training pictures, changed anew each epoch."""

from math import cos, radians, sin
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from vlalign.data.augment_text import TextAugmentation

SIDE = 224  # pixels of the shorter side of the picture in which the width of a blur is told


class _Affine(Protocol):
    @property
    def degrees(self) -> float: ...
    @property
    def translate(self) -> float: ...
    @property
    def scale(self) -> tuple[float, float]: ...


class _Jitter(Protocol):
    @property
    def probability(self) -> float: ...
    @property
    def brightness(self) -> float: ...
    @property
    def contrast(self) -> float: ...
    @property
    def saturation(self) -> float: ...
    @property
    def hue(self) -> float: ...


class _Blur(Protocol):
    @property
    def probability(self) -> float: ...
    @property
    def sigma(self) -> tuple[float, float]: ...


class Augmentation(Protocol):
    """What is done to a training row; areas and ratios as of `torchvision.transforms.RandomResizedCrop`."""

    @property
    def scale(self) -> tuple[float, float]:
        """Area of the crop, as a fraction of the picture's."""

    @property
    def ratio(self) -> tuple[float, float]:
        """Width over height of the crop."""

    @property
    def flip(self) -> bool:
        """Whether half of the pictures are mirrored."""

    @property
    def affine(self) -> _Affine | None:
        """A turn up to `degrees`, a shift up to a fraction `translate` of the sides, a zoom by `scale`."""

    @property
    def jitter(self) -> _Jitter | None:
        """How strongly colours change, and with what probability."""

    @property
    def grey(self) -> float:
        """Share of the pictures that lose their colours."""

    @property
    def blur(self) -> _Blur | None:
        """A Gaussian of a width within `sigma`, and its probability."""

    @property
    def text(self) -> TextAugmentation | None:
        """What is done to the caption, by `vlalign.data.augment_text`."""

    @property
    def teacher(self) -> Literal["same", "whole"]:
        """Whether averaged weights see this picture too, or the one to which nothing was done."""


def augment(image: Image.Image, random: np.random.Generator, how: Augmentation) -> Image.Image:
    """An RGB picture after what is asked for; what is not draws nothing.

    The crop is squeezed to a square of its own area (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842).
    """
    if how.scale != (1.0, 1.0):
        box = _crop(image.size, random, how.scale, how.ratio)
        side = max(1, round(((box[2] - box[0]) * (box[3] - box[1])) ** 0.5))
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    if how.flip and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if how.affine:
        image = _moved(image, random, how.affine)
    if how.jitter and random.random() < how.jitter.probability:
        image = _jittered(image, random, how.jitter)
    if how.grey and random.random() < how.grey:
        image = image.convert("L").convert("RGB")
    if how.blur and random.random() < how.blur.probability:
        width = random.uniform(*how.blur.sigma) * min(image.size) / SIDE
        image = image.filter(ImageFilter.GaussianBlur(width))
    return image


def _crop(
    size: tuple[int, int], random: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Ten tries for a box that fits, then the largest centred one within the ratio."""
    width, height = size
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        aspect = np.exp(random.uniform(*np.log(ratio)))
        wide, high = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < wide <= width and 0 < high <= height:
            left, top = random.integers(width - wide + 1), random.integers(height - high + 1)
            return int(left), int(top), int(left + wide), int(top + high)
    wide, high = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + max(1, wide), top + max(1, high)


def _moved(image: Image.Image, random: np.random.Generator, how: _Affine) -> Image.Image:
    """Turned and zoomed about its middle, then shifted."""
    turn, zoom = radians(random.uniform(-how.degrees, how.degrees)), random.uniform(*how.scale)
    middle = np.array(image.size) / 2
    shift = random.uniform(-how.translate, how.translate, size=2) * image.size
    back = np.array([[cos(turn), sin(turn)], [-sin(turn), cos(turn)]]) / zoom
    start = middle - back @ (middle + shift)
    matrix = (*back[0], start[0], *back[1], start[1])
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _jittered(image: Image.Image, random: np.random.Generator, how: _Jitter) -> Image.Image:
    for change in random.permutation(4):
        if change == 3:
            image = _turned(image, random.uniform(-how.hue, how.hue)) if how.hue else image
            continue
        name, enhance = CHANGES[change]
        if strength := getattr(how, name):
            image = enhance(image).enhance(random.uniform(1 - strength, 1 + strength))
    return image


CHANGES = (
    ("brightness", ImageEnhance.Brightness),
    ("contrast", ImageEnhance.Contrast),
    ("saturation", ImageEnhance.Color),
)


def _turned(image: Image.Image, part: float) -> Image.Image:
    """The colour circle turned by a part of itself, in Pillow's 256 steps."""
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(step + round(part * 256)) % 256 for step in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")
