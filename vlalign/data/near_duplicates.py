"""Whether two items are the same, or nearly: what must not be right and wrong for one query."""

import re
from contextlib import suppress
from functools import lru_cache
from hashlib import file_digest
from pathlib import Path

from vlalign.data.items import normal
from vlalign.types import Item

WIDTH = 3  # words of a shingle
# Chinese and Japanese have no blanks: there each letter is a word.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]|[^\W\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")


def likeness(one: Item, other: Item, near: float | None) -> str:
    """`same`, `near`, or nothing. `near`: the least Jaccard similarity of the shingles of near duplicates.

    Texts are compared without capitals, white space made even, and only those that stand alone: beside a
    picture a text is often an instruction that all rows share. Items with pictures are the same where they
    have one in common, by the bytes of their files.
    """
    if one.images or other.images:
        known = {digest for image in one.images if (digest := picture_digest(image))}
        return "same" if any(picture_digest(image) in known for image in other.images) else ""
    if normal(one.text) == normal(other.text):
        return "same"
    return "near" if near is not None and overlap(one.text, other.text, near) else ""


def overlap(one: str, other: str, least: float) -> bool:
    """Whether the shingles that two texts share are at least that part of those they have together."""
    sets = shingles(one), shingles(other)
    small, large = sorted(map(len, sets))
    if not small or small / large < least:  # they cannot share so much
        return False
    shared = len(sets[0] & sets[1])
    return shared / (small + large - shared) >= least


@lru_cache(2**16)
def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every three words of a text that stand side by side; of fewer, all of them."""
    words = WORD.findall(text.casefold())
    if not words:
        return frozenset()
    return frozenset(tuple(words[at : at + WIDTH]) for at in range(max(len(words) - WIDTH + 1, 1)))


@lru_cache(2**18)
def picture_digest(path: Path) -> bytes:
    """Equal where two files are; nothing of a file that cannot be read."""
    with suppress(OSError, ValueError):  # the second: a NUL in the name
        if path.is_file():  # no device that never ends
            with path.open("rb") as file:
                return file_digest(file, "blake2b").digest()[:16]
    return b""
