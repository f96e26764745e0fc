"""Captions, changed anew each epoch: two of the four of Wei and Zou 2019, https://arxiv.org/abs/1901.11196."""

from typing import Protocol

import numpy as np


class TextAugmentation(Protocol):
    """What is done to a caption: one thing or none."""

    @property
    def swap(self) -> float:
        """Share of the captions two words of which change places."""

    @property
    def drop(self) -> float:
        """Share of the captions that lose words."""

    @property
    def dropped(self) -> float:
        """Share of the words that such a one loses."""


def augment_text(text: str, random: np.random.Generator, how: TextAugmentation) -> str:
    """Two words swapped, some dropped, or the text as it is; never fewer words than one.

    The draws do not depend on the text but for its number of words. Words are what white space parts.
    """
    lot, words = random.random(), text.split()
    if len(words) < 2 or lot >= how.swap + how.drop:
        return text
    if lot < how.swap:
        one, other = random.choice(len(words), size=2, replace=False)
        words[one], words[other] = words[other], words[one]
        return " ".join(words)
    kept = random.random(len(words)) >= how.dropped
    kept[random.integers(len(words))] |= not kept.any()
    return " ".join(word for word, stays in zip(words, kept, strict=True) if stays)
