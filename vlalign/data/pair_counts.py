"""How often the texts, pictures and words of noisy pairs come: what a filter decides by."""

import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from vlalign.data.hashing import hash63
from vlalign.types import BadRow

TextRule = Callable[[str, str], bool]  # of a picture's name and a text: whether the text stays


@dataclass(frozen=True)
class Counts:
    """Of all pairs of a set, before any is left out; a pair that comes again counts once in the first two.

    What was not asked for is empty.
    """

    texts: Counter[int]  # picture -> how many different texts it has
    pictures: Counter[int]  # text -> of how many different pictures
    grams: Counter[str]  # one word or two -> how often it comes

    def texts_of(self, picture: str) -> int:
        """How many different texts a picture has."""
        return self.texts[hash63(picture)]

    def pictures_of(self, text: str) -> int:
        """How many different pictures a text has."""
        return self.pictures[text_key(text)]

    def rank(self, place: int) -> int:
        """The count of the `place`-th most frequent gram, 0 where there are fewer."""
        ordered = sorted(self.grams.values(), reverse=True) if place <= len(self.grams) else []
        return ordered[place - 1] if ordered else 0


def count(
    pairs: Iterable[tuple[str, str]], *, texts: bool = True, pictures: bool = True, grams: bool = True
) -> Counts:
    """Count what is asked for of (picture, text) pairs, the order of which does not matter.

    Held are hashes and grams, no text.
    """
    counts, seen = Counts(Counter(), Counter(), Counter()), set[int]()
    for picture, text in pairs if texts or pictures or grams else ():
        if grams:
            counts.grams.update(grams_of(words_of(text)))
        if not (texts or pictures):
            continue
        key = text_key(text)
        pair = hash63(picture, key)
        if pair in seen:
            continue
        seen.add(pair)
        if texts:
            counts.texts[hash63(picture)] += 1
        if pictures:
            counts.pictures[key] += 1
    return counts


def more_grams(texts: Iterable[str], place: int) -> bool:
    """Whether texts may have more than `place` different grams: n words make less than 2 n."""
    return any(total > place for total in accumulate(2 * len(text.split()) for text in texts))


def text_key(text: str) -> int:
    """Equal for texts that differ only in case and in white space at the ends."""
    return hash63(text.strip().casefold())


def words_of(text: str) -> list[str]:
    """What white space parts, in any case and without punctuation at the ends; punctuation alone is none."""
    bare = (word.strip(string.punctuation) for word in text.casefold().split())
    return [word for word in bare if word]


def grams_of(words: list[str]) -> list[str]:
    """The words and the pairs of neighbours."""
    return words + [" ".join(pair) for pair in zip(words, words[1:], strict=False)]


def passing(rules: Mapping[str, TextRule], picture: str, texts: tuple[str, ...]) -> tuple[str, ...]:
    """The texts that every rule passes. Raises BadRow with the rule that took the last one."""
    for name, passes in rules.items():
        texts = tuple(text for text in texts if passes(picture, text))
        if not texts:
            raise BadRow(name)
    return texts
