"""Rows of a source -> embeddings, in one streaming pass; and what a report shows of a row."""

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlalign.specs import Embedder
from vlalign.threads import ahead
from vlalign.types import BadRow, DataError, Sample, Source

AHEAD = 64  # rows that are decoded while a forward runs


@dataclass(frozen=True)
class Pictures:
    """The rows of a source that could be read: `features` [N, *] and their `samples` without the image.

    `index` is the place of each row in the source, `bad` counts the rows that were skipped, by reason.
    """

    source: Source
    features: Tensor
    samples: list[Sample]
    index: list[int]
    bad: Counter[str]

    def field(self, name: str) -> list[str]:
        """A text field of every row. Raises DataError when a row has no such field."""
        for sample in self.samples:
            if name not in sample:
                has = ", ".join(sorted(sample))
                raise DataError(f"row '{sample['id']}' has no field '{name}'; it has {has}")
        return [str(sample[name]) for sample in self.samples]

    def captions(self) -> tuple[list[str], Tensor]:
        """Every caption of every row, and the place among these rows [M] of the row that it belongs to."""
        texts = [text for sample in self.samples for text in sample["captions"]]
        counts = torch.tensor([len(sample["captions"]) for sample in self.samples])
        return texts, torch.arange(len(counts)).repeat_interleave(counts)

    def thumbnail(self, row: int, size: int) -> str:
        """The picture of a row as a `data:` URI, at most `size` pixels a side. It is decoded again.

        One that can no longer be read is grey: what was measured is worth more than its picture.
        """
        try:
            picture = self.source[self.index[row]]["image"].copy()
        except BadRow:
            picture = Image.new("RGB", (size, size), "grey")
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        return data_uri(picture)

    def account(self) -> dict[str, Any]:
        """How many rows were used, skipped and converted, by reason, and the licences of the data."""
        skipped = Counter({reason: len(ids) for reason, ids in self.source.skipped.items()}) + self.bad
        converted = Counter(mark for sample in self.samples for mark in sample.get("conversions", ()))
        return {
            "used": len(self.samples),
            "skipped": dict(skipped),
            "converted": dict(converted),
            "licences": [asdict(licence) for licence in self.source.licences],
        }


def data_uri(picture: Image.Image) -> str:
    """A picture as a page holds it."""
    file = BytesIO()
    picture.save(file, "WEBP", quality=82)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode('ascii')}"


def read_pictures(
    model: Embedder, source: Source, encode: Callable[[Iterator[Image.Image]], Tensor] | None = None
) -> Pictures:
    """Embed a source as a stream, of which threads decode the next rows. `encode`: other than by the model.

    Raises DataError when no row can be used.
    """
    samples: list[Sample] = []
    index: list[int] = []
    bad: Counter[str] = Counter()

    def images() -> Iterator[Image.Image]:
        for place, row in enumerate(ahead(partial(_read, source), range(len(source)), most=AHEAD)):
            if isinstance(row, BadRow):
                bad[row.reason] += 1
                continue
            samples.append({name: value for name, value in row.items() if name != "image"})
            index.append(place)
            yield row["image"]

    features = (encode or model.encode_image)(images())
    if not samples:
        found = ", ".join(f"{reason}: {count}" for reason, count in bad.items()) or "it is empty"
        raise DataError(f"none of the {len(source)} rows could be read ({found})")
    return Pictures(source, features, samples, index, bad)


def class_counts(source: Source, field: str) -> Counter[str]:
    """Rows of each value of a text field; nothing is decoded. Raises DataError where one has none."""
    values = Counter(source.fields(index).get(field) for index in range(len(source)))
    if None in values:
        has = ", ".join(sorted(source.fields(0)))
        raise DataError(f"{values[None]} of {len(source)} rows have no field '{field}'; the first has {has}")
    return Counter({str(value): rows for value, rows in values.items()})


def _read(source: Source, place: int) -> Sample | BadRow:
    try:
        return source[place]
    except BadRow as error:
        return error
