"""Queries of one chunk and the candidates drawn for each, which are keys for all, for a dual encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import torch
from PIL.Image import Image

from vlalign.data.candidates import drawn
from vlalign.data.chunks import Chunks, TextFeatures
from vlalign.data.collate import Process
from vlalign.data.hashing import hash63
from vlalign.data.images import opened
from vlalign.data.items import normal
from vlalign.data.query_rows import LABEL, QueryRows
from vlalign.types import BadRow, Batch, DataError, Item, Limits

Part = Literal["image", "text"]  # what one tower reads
Kind = Part | Literal["both"]


@dataclass(frozen=True, kw_only=True)
class ItemSide:
    """Queries, or candidates. `kind`: what all of them are. `features`: of a locked tower, all in order."""

    kind: Part
    process: Process
    features: TextFeatures | None = None

    def read(self, item: Item, row: int, place: int, limits: Limits) -> Any:
        """What `process` or `stack_features` takes. Raises BadRow."""
        shown = check(item, self.kind)
        if self.features is not None:
            return self.features.features[self.features.offsets[row] + place]
        return opened(shown, limits) if self.kind == "image" else shown

    def inputs(self, rows: Sequence[Any]) -> Any:
        """Of what was read, for the tower or what comes after it."""
        if self.features is not None:
            return {"features": torch.stack(list(rows)).float()}
        return self.process(rows)


@dataclass(frozen=True, kw_only=True)
class BothSides:
    """The same of what has a picture and a text."""

    image: ItemSide
    text: ItemSide
    kind: Literal["both"] = "both"

    def read(self, item: Item, row: int, place: int, limits: Limits) -> Any:
        """What each part takes. Raises BadRow."""
        return [side.read(part_of(item, side.kind), row, place, limits) for side in (self.image, self.text)]

    def inputs(self, rows: Sequence[Any]) -> Any:
        """By part."""
        image, text = zip(*rows, strict=True)
        return {"image": self.image.inputs(image), "text": self.text.inputs(text)}


@dataclass(frozen=True, kw_only=True)
class KeyedCandidates(Chunks):
    """Fields of queries and keys are `row`, the query's where a key is right for it; `document`, what a key
    says or shows, of a query that of its first right one; `query`, whose candidate a key is; and the numbers
    of candidates. `known_bad`: reasons of rows without features. `asks`: as `Candidates` have it.
    """

    source: QueryRows
    query: ItemSide | BothSides
    key: ItemSide | BothSides
    limits: Limits = Limits()
    known_bad: Mapping[int, str]
    asks: bool = False

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """So many right and wrong candidates as the source says, drawn anew. Raises BadRow."""
        if index in self.known_bad:
            raise BadRow(self.known_bad[index])
        row = self.source[index]
        labels = row["numbers"][LABEL]
        chosen = drawn(labels, self.source.positives, self.source.negatives, self.random(index, epoch))
        if not chosen:
            raise BadRow("no_candidates", "none of the kind that is drawn; see positives and negatives")
        candidates = [row["candidates"][at] for at in chosen]
        return {
            "id": row["id"],
            "query": self.query.read(row["query"], index, 0, self.limits),
            "keys": [
                self.key.read(x, index, at, self.limits) for x, at in zip(candidates, chosen, strict=True)
            ],
            "right": [labels[at] > 0 for at in chosen],
            "documents": [content(each) for each in candidates],
            "numbers": {name: [values[at] for at in chosen] for name, values in row["numbers"].items()},
            "asked": (row["query"], candidates),
        }

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Each query's candidates side by side, in the order of queries."""
        own = [hash63(row["id"]) for row in rows]
        documents = [document for row in rows for document in row["documents"]]
        whose = [query for row, query in zip(rows, own, strict=True) for _ in row["keys"]]
        right = [each for row in rows for each in row["right"]]
        row_of = [
            query if good else hash63("key", x)
            for query, good, x in zip(whose, right, documents, strict=True)
        ]
        first = [next((x for x, good in zip(row["documents"], row["right"], strict=True) if good), query)
                 for row, query in zip(rows, own, strict=True)]  # fmt: skip
        names = set.intersection(*(set(row["numbers"]) for row in rows))
        numbers = {name: [x for row in rows for x in row["numbers"][name]] for name in sorted(names)}
        keys = {"row": row_of, "document": documents, "query": whose}
        return {
            "query": self.query.inputs([row["query"] for row in rows]),
            "key": self.key.inputs([key for row in rows for key in row["keys"]]),
            "towers": (self.query.kind, self.key.kind),
            "query_fields": {
                "row": torch.tensor(own),
                "document": torch.tensor(first),
                "query": torch.tensor(own),
            },
            "key_fields": {name: torch.tensor(values) for name, values in keys.items()}
            | {name: torch.tensor(values, dtype=torch.float32) for name, values in numbers.items()},
            "ids": [row["id"] for row in rows],
            **({"asked": [row["asked"] for row in rows]} if self.asks else {}),
        }


def kinds(source: QueryRows, joint: bool = False) -> tuple[Kind, Kind]:
    """What queries are, and what candidates are, as the first good row has them. Raises DataError.

    `joint`: whether what has a picture and a text is both, and not a picture.
    """
    for index in range(len(source)):
        try:
            row = source[index]
        except BadRow:
            continue
        return _kind(row["query"], joint), _kind(row["candidates"][0], joint)
    raise DataError(f"{source.name}: none of its {len(source)} rows can be read")


def side_of(
    kind: Kind, processes: Mapping[Part, Process], features: Mapping[Part, TextFeatures]
) -> ItemSide | BothSides:
    """What reads items of a kind. `features`: of parts whose tower is locked."""
    own = {
        part: ItemSide(kind=part, process=processes[part], features=features.get(part))
        for part in parts(kind)
    }
    return BothSides(image=own["image"], text=own["text"]) if kind == "both" else own[kind]


def parts(kind: Kind) -> tuple[Part, ...]:
    """What towers read of an item."""
    return ("image", "text") if kind == "both" else (kind,)


def part_of(item: Item, part: Part) -> Item:
    """Its pictures alone, or its text."""
    return Item(images=item.images) if part == "image" else Item(text=item.text)


def check(item: Item, kind: Part) -> Any:
    """Its text, or its picture. Raises BadRow where it is not what all others are."""
    if _kind(item) != kind or len(item.images) > 1 or not (item.images or item.text.strip()):
        found = f"{len(item.images)} pictures and {'a' if item.text else 'no'} text"
        raise BadRow(
            "other_kind", f"here each is one {kind}, and this has {found}; a tower reads one of them"
        )
    return item.images[0] if kind == "image" else item.text


def content(item: Item) -> int:
    """Alike where two items say the same, or show the same file or the same pixels."""
    shown = [
        blake2b(each.tobytes(), digest_size=16).hexdigest() if isinstance(each, Image) else str(each)
        for each in item.images
    ]
    return hash63("document", normal(item.text), *shown)


def _kind(item: Item, joint: bool = False) -> Kind:
    if joint and item.images and item.text.strip():
        return "both"
    return "image" if item.images else "text"
