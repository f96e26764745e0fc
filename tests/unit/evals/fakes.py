"""A source in memory and a model that reads the colour of a picture and the words of a text."""

from dataclasses import dataclass, field

import torch
from PIL import Image

from vlalign.types import BadRow, Licence, Limits

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@dataclass
class Rows:
    """Each row is a dict whose `image` is a colour; the colour None is a row that cannot be read."""

    rows: list
    skipped: dict = field(default_factory=dict)
    licences: tuple = (Licence(name="fake", licence="CC0", source="memory"),)

    def __len__(self):
        return len(self.rows)

    def fields(self, index):
        return {"id": str(index)} | {k: v for k, v in self.rows[index].items() if isinstance(v, str)}

    def __getitem__(self, index):
        row = self.rows[index]
        if row["image"] is None:
            raise BadRow("truncated")
        return {"id": str(index), **row, "image": Image.new("RGB", (8, 6), row["image"])}


@dataclass(frozen=True)
class Spec:
    source: Rows

    def build(self, limits: Limits = Limits()):
        return self.source


class ColourModel:
    """A text is the sum of the colours that it names; a picture is its colour. `asked` counts texts."""

    def __init__(self):
        self.asked = []

    def encode_image(self, images):
        return unit([image.getpixel((0, 0)) for image in images])

    def encode_text(self, texts):
        self.asked += texts
        named = [[colour for name, colour in COLOURS.items() if name in text.lower()] for text in texts]
        return unit([[sum(parts) for parts in zip(*colours, strict=True)] or [1, 1, 1] for colours in named])


def unit(rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32).reshape(len(rows), 3), dim=1)
