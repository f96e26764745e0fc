"""Components outside the package, in one file: a recipe names one `tests.recipes.outside:Hinge`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vlalign.data.index import Entry
from vlalign.data.sources.jsonl import JsonLines
from vlalign.ops.reductions import Expected, Max, Over


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """max(0, margin + hardest negative - positive), in cosine."""

    margin: float = 0.2
    reductions = {
        "positive": Expected(temperature=1.0),
        "hardest": Max(over=Over.NEGATIVES, temperature=1.0),
    }

    def __call__(self, rows):
        return torch.relu(self.margin + rows["hardest"] - rows["positive"])


@dataclass(frozen=True, kw_only=True)
class Labelled(JsonLines):
    """Every other column that holds a string becomes a field."""

    def entry(self, record: Mapping[str, Any], name: str, place: Any) -> Entry:
        entry = super().entry(record, name, place)
        taken = (self.image, *self.captions, self.id)
        strings = {key: x for key, x in record.items() if key not in taken and isinstance(x, str)}
        return replace(entry, fields=strings)
