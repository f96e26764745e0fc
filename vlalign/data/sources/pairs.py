"""Pictures and captions as queries: one side asks, the other answers."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

from vlalign.data.corpus import MadeCorpus
from vlalign.data.items import normal
from vlalign.data.query_rows import LABEL, Parsed, QueryRows, QuerySpec
from vlalign.registry import SOURCES, name_of
from vlalign.specs import SourceSpec
from vlalign.types import DataError, Item, Limits, Source

Kind = Literal["image", "text"]


@SOURCES.register("pairs")
@dataclass(frozen=True, kw_only=True)
class PairQueries(QuerySpec):
    """Every pair of `data`, a source of pictures and captions, as a query with its right candidates.

    `query`: the side that asks. The other side of all pairs is the corpus of `documents`, for mining, each
    called by the pair's id. Of several captions of a picture the first counts. Pairs whose captions are
    equal, but for capitals and white space, are right for each other; rows with such are `noted` as
    `shared_caption`. `corpus`: other pairs, whose side of that kind is mined instead.
    """

    data: Annotated[SourceSpec, SOURCES]
    query: Kind
    corpus: Annotated[SourceSpec, SOURCES] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("data", "corpus"):
            if getattr(getattr(self, name), "reads", "pairs") != "pairs":
                raise ValueError(
                    f"{name} must be pictures with captions, and has queries with candidates already"
                )

    def build(self, limits: Limits = Limits()) -> "PairRows":
        """Build the sources of pairs; nothing is decoded. Raises DataError."""
        corpus = None if self.corpus is None else self.corpus.build(limits)
        return PairRows(self, self.data.build(limits), corpus)


class PairRows(QueryRows):
    """A picture is decoded whenever its row, or a row that it is right for, is read."""

    def __init__(self, spec: PairQueries, source: Source, corpus: Source | None = None) -> None:
        """Raises DataError where two pairs have one id."""
        self.source, self.side = source, spec.query
        self.name = f"pairs ({name_of(type(spec.data))}, {spec.query})"
        self.positives, self.negatives = spec.positives, spec.negatives
        self.licences, self.skipped = source.licences, source.skipped
        self.ids = _ids(source)
        others = [] if corpus is None else _ids(corpus)
        if len({*self.ids, *others}) < len(self.ids) + len(others):
            raise DataError(f"{self.name}: two pairs have one id; give each its own")
        self.texts = [source.captions(index)[0] for index in range(len(source))]
        self.alike: dict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(self.texts):
            self.alike[normal(text)].append(index)
        shared = sum(len(each) for each in self.alike.values() if len(each) > 1)
        self.noted = {"shared_caption": shared} if shared else {}
        other: Kind = "text" if self.side == "image" else "image"
        make: Callable[[int], Item] = partial(_item, source, self.texts, other)
        if corpus is not None:
            self.skipped = {**corpus.skipped, **source.skipped}
            texts = [corpus.captions(index)[0] for index in range(len(others))]
            make = partial(_of_both, make, partial(_item, corpus, texts, other), len(self.ids))
        hidden = 0 if corpus is None else len(self.ids)
        self.documents = MadeCorpus(self.name, [*self.ids, *others], make, hidden)

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, index: int) -> Parsed:
        """A pair, and those that are right for it. Raises BadRow."""
        right = [self.ids[each] for each in self.alike[normal(self.texts[index])]]
        query = _item(self.source, self.texts, self.side, index)
        return Parsed(self.ids[index], query, (), right, {LABEL: [1.0] * len(right)})

    def captions(self, index: int) -> tuple[str, ...]:
        """The query's text; nothing is decoded."""
        return (self.texts[index] if self.side == "text" else "",)

    def fields(self, index: int) -> dict[str, str]:
        """Its id; nothing is decoded."""
        return {"id": self.ids[index]}


def _ids(source: Source) -> list[str]:
    return [source.fields(index)["id"] for index in range(len(source))]


def _of_both(first: Callable[[int], Item], second: Callable[[int], Item], count: int, place: int) -> Item:
    return first(place) if place < count else second(place - count)


def _item(source: Source, texts: list[str], side: Kind, index: int) -> Item:
    return Item(text=texts[index]) if side == "text" else Item(images=(source[index]["image"],))
