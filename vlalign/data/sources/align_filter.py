"""ALIGN's filter of noisy pairs, Jia et al. 2021, https://arxiv.org/abs/2102.05918, section 3."""

from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Annotated

from vlalign.data.bad_rows import name_of
from vlalign.data.images import headers_only
from vlalign.data.index import Index, known
from vlalign.data.pair_counts import Counts, TextRule, count, grams_of, more_grams, passing, words_of
from vlalign.data.subset import Subset
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import BadRow, Limits, Source


@SOURCES.register("align_filter")
@dataclass(frozen=True, kw_only=True)
class AlignFilter:
    """Rows of `source` that pass every rule; null: no such rule. A dropped row is skipped by the rule's name.

    `texts_per_image`: at most so many different texts a picture; `images_per_text`: at most so many different
    pictures a text; `words`: fewest and most of a text; `frequent`: no word, and no two neighbours, but the
    so many most frequent of all texts, with those that come as often as the last of them; `short_side`: the
    shorter side is longer than so many pixels; `aspect`: the longer side is less than so many times it.

    `image`: the field that names a picture, where rows share one. Of several captions those that pass stay;
    the rule that takes the last drops the row. Near-duplicates of test pictures, which the paper drops as
    well, are not looked for.

    Whenever the source is built, texts are read once, and once or twice more where rules count. Rules of size
    need the header of each picture whose texts pass; a source of shards reads its whole bytes for that, so
    `short_side` and `aspect` cost a reading of the data. Dropped rows are told with the bad ones: a recipe
    with `on_error: raise` refuses this source as soon as a row is dropped.
    """

    source: Annotated[SourceSpec, SOURCES]
    texts_per_image: int | None = 1000
    images_per_text: int | None = 10
    words: tuple[int, int] | None = (3, 20)
    frequent: int | None = 100_000_000
    short_side: int | None = 200
    aspect: float | None = 3.0
    image: str = "id"

    def __post_init__(self) -> None:
        for name in ("texts_per_image", "images_per_text", "frequent", "short_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.words is not None and not 1 <= self.words[0] <= self.words[1]:
            raise ValueError(f"words must be 1 <= fewest <= most, got {list(self.words)}")
        if self.aspect is not None and not self.aspect > 1:
            raise ValueError(f"aspect must be > 1, got {self.aspect}")

    def build(self, limits: Limits = Limits()) -> Subset:
        """Build the source, count, and decide. Raises DataError."""
        source, most = self.source.build(limits), self.frequent
        counts = count(
            self._pairs(source),
            texts=self.texts_per_image is not None,
            pictures=self.images_per_text is not None,
            grams=most is not None and more_grams((text for _, text in self._pairs(source)), most),
        )
        return self.select(source, counts)

    def select(self, source: Source, counts: Counts) -> Subset:
        """The rows that pass, by counts of these or of other rows. Raises DataError when none does."""
        rules, found = self._rules(counts), Index()
        rows = array("q")
        captions: dict[int, tuple[str, ...]] = {}
        for number in range(len(source)):
            with found.row(name_of(source, number)):  # a rule is the reason of a BadRow
                texts = source.captions(number)
                left = passing(rules, self._picture(source, number), texts)
                self._check_size(source, number)
                rows.append(number)
                if len(left) < len(texts):
                    captions[number] = left
        return Subset(source, rows, captions, found.skipped, what="align_filter")

    def _pairs(self, source: Source) -> Iterator[tuple[str, str]]:
        for number in range(len(source)):
            with suppress(BadRow):  # `select` meets it again, and tells
                picture = self._picture(source, number)
                yield from ((picture, text) for text in source.captions(number))

    def _picture(self, source: Source, number: int) -> str:
        fields = source.fields(number)
        if self.image not in fields:
            known(self.image, fields, "align_filter: image: the source")
        return fields[self.image]

    def _rules(self, counts: Counts) -> dict[str, TextRule]:
        a_picture, a_text = self.texts_per_image or inf, self.images_per_text or inf
        fewest, most = self.words or (0, inf)
        rare = counts.rank(self.frequent) if self.frequent else 0
        asked = self.texts_per_image, self.images_per_text, self.words, rare
        rules: dict[str, TextRule] = {
            "texts_per_image": lambda picture, _: counts.texts_of(picture) <= a_picture,
            "images_per_text": lambda _, text: counts.pictures_of(text) <= a_text,
            "words": lambda _, text: fewest <= len(words_of(text)) <= most,
            "frequent": lambda _, text: all(counts.grams[gram] >= rare for gram in grams_of(words_of(text))),
        }
        return {name: rule for (name, rule), how in zip(rules.items(), asked, strict=True) if how}

    def _check_size(self, source: Source, number: int) -> None:
        if self.short_side is None and self.aspect is None:
            return
        with headers_only():
            short, long = sorted(source[number]["image"].size)
        if self.short_side is not None and short <= self.short_side:
            raise BadRow("short_side")
        if self.aspect is not None and long >= self.aspect * short:
            raise BadRow("aspect")
