"""Every sample of many tar shards, read in any order."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from glob import glob
from itertools import product
from pathlib import Path
from typing import overload

import numpy as np

from vlalign.data.index import Entry
from vlalign.data.shard import NOWHERE, Layout, Shard, captions
from vlalign.types import DataError


def expand(patterns: Sequence[str]) -> list[Path]:
    """Paths from `{00..12}`, `{a,b}`, `*` and folders of .tar files, sorted within each. Raises DataError."""
    paths: list[Path] = []
    for pattern in patterns:
        for path in map(Path, _braces(str(Path(pattern).expanduser()))):
            found = sorted(path.glob("*.tar")) if path.is_dir() else sorted(map(Path, glob(str(path))))
            if not found:
                raise DataError(
                    f"no shard is at {path}" + (f" (from {pattern})" if str(path) != pattern else "")
                )
            paths += found
    return paths


def _braces(pattern: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for place, part in enumerate(parts):
        count = re.fullmatch(r"(\d+)\.\.(\d+)", part) if place % 2 else None
        if count:
            numbers = range(int(count[1]), int(count[2]) + 1)
            choices.append([f"{number:0{len(count[1])}d}" for number in numbers])
        else:
            choices.append(part.split(",") if place % 2 else [part])
    return map("".join, product(*choices))


class Shards(Sequence[Entry]):
    """Every sample of the shards as an entry, made when it is asked for: memory holds offsets, not text."""

    def __init__(self, paths: Sequence[Path], layout: Layout, classes: Sequence[str]) -> None:
        """`classes`: what the numbers of .cls members stand for; without any the numbers are the names."""
        self.shards, self.layout, self.classes = [Shard.of(path) for path in paths], layout, tuple(classes)
        stems = [path.stem for path in paths]
        self.names = stems if len(set(stems)) == len(stems) else list(map(str, paths))
        self.skipped: dict[str, list[str]] = defaultdict(list)
        keys, spans = [], []
        for shard, name in zip(self.shards, self.names, strict=True):
            index = shard.index(layout)
            keys.append(index["keys"])
            spans.append(index["spans"])
            for reason, rows in json.loads(str(index["skipped"])).items():
                self.skipped[reason] += [f"{name}/{row}" if row else name for row in rows]
        self._keys, self._spans = keys, spans
        self._starts = np.cumsum([0, *map(len, keys)])
        self.labelled = all(bool((part[:, 2, 0] >= 0).all()) for part in spans)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> Entry: ...
    @overload
    def __getitem__(self, row: slice) -> list[Entry]: ...
    def __getitem__(self, row: int | slice) -> Entry | list[Entry]:
        """The sample, its caption and class read from the shard. Raises BadRow when that is gone."""
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        within = row - int(self._starts[which])
        shard = self.shards[which]
        image, caption, label = (tuple(span) for span in self._spans[which][within].tolist())
        name = self._label(shard.read(label)) if label != NOWHERE else ""
        found = captions(shard.read(caption), self.layout) if caption != NOWHERE else (name,)
        fields = {"label": name} if self.labelled else {}
        return Entry(f"{self.names[which]}/{self._keys[which][within]}", found, (shard, image), fields)

    def _label(self, content: bytes) -> str:
        text = content.decode(errors="replace").strip()
        return self.classes[int(text)] if text.isdecimal() and int(text) < len(self.classes) else text
