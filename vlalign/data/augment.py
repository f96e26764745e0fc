"""Training pictures, changed anew each epoch."""

from typing import Protocol

import numpy as np
from PIL import Image


class Augmentation(Protocol):
    """What is done to a training image; areas and ratios as of `torchvision.transforms.RandomResizedCrop`."""

    @property
    def scale(self) -> tuple[float, float]:
        """Area of the crop, as a fraction of the picture's."""
        ...

    @property
    def ratio(self) -> tuple[float, float]:
        """Width over height of the crop."""
        ...

    @property
    def flip(self) -> bool:
        """Whether half of the pictures are mirrored."""
        ...


def augment(image: Image.Image, random: np.random.Generator, how: Augmentation) -> Image.Image:
    """A random crop, squeezed to a square of its own area, then perhaps mirrored (Szegedy et al. 2014)."""
    if how.scale != (1.0, 1.0):
        box = _crop(image.size, random, how.scale, how.ratio)
        side = max(1, round(((box[2] - box[0]) * (box[3] - box[1])) ** 0.5))
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    if how.flip and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
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
