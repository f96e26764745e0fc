"""The documents of a corpus, found by id: memory holds a hash and a place of each."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlalign.data.hashing import hash63
from vlalign.data.items import name
from vlalign.data.json_rows import JsonFile, record
from vlalign.specs import Ints
from vlalign.types import BadRow, DataError, Item

TOGETHER = 1024  # documents that a walk over all of them reads at once


class Documents:
    """A file of JSON objects, a document each. `skipped`: lines that are none, by reason.

    A document whose id stands before is skipped as `duplicate_id`.
    """

    def __init__(self, path: Path, key: str, parse: Callable[[dict[str, Any]], Item]) -> None:
        """`key`: where the id is; `parse` raises BadRow. Raises DataError where no document is left."""
        self.file, self.key, self.parse = JsonFile.of(path), key, parse
        skipped: dict[str, list[str]] = defaultdict(list)
        hashes, spans, lines = array("q"), array("q"), array("q")
        for line, span, content in self.file.objects():
            try:
                id, _ = self._document(content)
            except BadRow as error:
                skipped[error.reason].append(f"{path.name}:{line}")
                continue
            hashes.append(hash63(id))
            spans.extend(span)
            lines.append(line)
        if not hashes:
            told = ", ".join(f"{reason} {len(names)}" for reason, names in skipped.items()) or "it is empty"
            raise DataError(f"{path}: no document of it can be used ({told})")
        self._hashes, first = np.unique(np.array(hashes, np.int64), return_index=True)
        self._spans = np.array(spans, np.int64).reshape(-1, 2)[first]
        again = np.delete(np.array(lines, np.int64), first)
        if len(again):
            skipped["duplicate_id"] += [f"{path.name}:{line}" for line in again]
        self.skipped = dict(skipped)

    def __len__(self) -> int:
        return len(self._hashes)

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        """Every document with its id, as they stand in the file. Raises BadRow: the file was changed."""
        spans = self._spans[np.argsort(self._spans[:, 0])].tolist()
        for start in range(0, len(spans), TOGETHER):
            contents = self.file.read(map(tuple, spans[start : start + TOGETHER]))
            yield from map(self._document, contents)

    def lacks(self, ids: Sequence[str]) -> list[str]:
        """Those that no document has."""
        there = self._hashes[self._places(ids)] == _hashes(ids)
        return [id for id, found in zip(ids, there.tolist(), strict=True) if not found]

    def check(self, ids: Sequence[str]) -> None:
        """Raises BadRow: `missing_document`."""
        if missing := self.lacks(ids):
            raise self._missing(missing)

    def items(self, ids: Sequence[str]) -> list[Item]:
        """The documents. Raises BadRow: `missing_document`, or that the file was changed."""
        self.check(ids)
        contents = self.file.read(map(tuple, self._spans[self._places(ids)].tolist()))
        found = dict(map(self._document, contents))
        if missing := [id for id in ids if id not in found]:  # another document has its hash
            raise self._missing(missing)
        return [found[id] for id in ids]

    def _missing(self, ids: Sequence[str]) -> BadRow:
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        return BadRow("missing_document", f"{self.file.path} has no document '{ids[0]}'{more}")

    def _document(self, content: bytes) -> tuple[str, Item]:
        told = record(content)
        id = name(told.get(self.key), "")
        if not id:
            raise BadRow("no_id", f"a document has no '{self.key}'")
        return id, self.parse(told)

    def _places(self, ids: Sequence[str]) -> Ints:
        """Where each is, or would be, in the hashes."""
        return np.minimum(np.searchsorted(self._hashes, _hashes(ids)), len(self) - 1)


def _hashes(ids: Sequence[str]) -> Ints:
    return np.array([hash63(id) for id in ids], np.int64)
