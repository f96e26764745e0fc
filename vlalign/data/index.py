"""A data set as a list of rows: found once, checked for structure, decoded one by one."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from vlalign.registry import suggestion
from vlalign.types import BadRow, DataError, Licence, Sample

Decoded = tuple[Image.Image, tuple[str, ...]]  # the picture, and what was converted


@dataclass(frozen=True, slots=True)
class Entry:
    """A row that is not decoded. `place` is what the set's reader finds the picture by."""

    id: str
    captions: tuple[str, ...]
    place: Any
    fields: Mapping[str, str] = field(default_factory=dict)


class Index:
    """Entries as they are found. A row that cannot be used is kept by its id under a reason."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.entries: list[Entry] = []
        self.skipped: dict[str, list[str]] = defaultdict(list)
        self._ids: set[str] = set()

    def add(self, entry: Entry) -> None:
        """Keep an entry, captions stripped; skip `empty_caption` and `duplicate_id` (the first one stays)."""
        captions = tuple(stripped for text in entry.captions if (stripped := text.strip()))
        if not captions:
            self.skip("empty_caption", entry.id)
        elif entry.id in self._ids:
            self.skip("duplicate_id", entry.id)
        else:
            self._ids.add(entry.id)
            self.entries.append(Entry(entry.id, captions, entry.place, entry.fields))

    @contextmanager
    def row(self, name: str) -> Iterator[None]:
        """Count the row under the reason of a BadRow that is raised inside."""
        try:
            yield
        except BadRow as bad:
            self.skip(bad.reason, name)

    def skip(self, reason: str, row: str) -> None:
        """Count a row that cannot be used."""
        self.skipped[reason].append(row)


class Indexed:
    """A Source over entries and the function that turns an entry's place into a picture."""

    def __init__(
        self,
        entries: Sequence[Entry],
        read: Callable[[Any], Decoded],
        licences: Sequence[Licence],
        skipped: Mapping[str, Sequence[str]],
        *,
        what: str,
    ) -> None:
        """`what` names the set in errors. Raises DataError when no entry is left."""
        self.entries, self.licences, self.skipped = entries, tuple(licences), dict(skipped)
        self._read = read
        if not entries:
            counts = ", ".join(f"{len(ids)} {reason}" for reason, ids in self.skipped.items())
            raise DataError(f"{what} has no usable row; skipped: {counts or 'none'}")

    def __len__(self) -> int:
        return len(self.entries)

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption of a row; nothing is decoded."""
        return self.entries[index].captions

    def fields(self, index: int) -> dict[str, str]:
        """`id` and the other string fields of a row; nothing is decoded."""
        entry = self.entries[index]
        return {"id": entry.id, **entry.fields}

    def __getitem__(self, index: int) -> Sample:
        """One decoded row; `conversions` says what had to be done to its picture. Raises BadRow."""
        entry = self.entries[index]
        image, conversions = self._read(entry.place)
        return {
            **entry.fields,
            "id": entry.id,
            "captions": entry.captions,
            "image": image,
            "conversions": conversions,
        }


def texts(value: Any) -> tuple[str, ...]:
    """The strings of a cell: a string, UTF-8 bytes, a list of them, or nothing. Raises BadRow."""
    if value is None:
        return ()
    if isinstance(value, list | tuple):
        return tuple(text for item in value for text in texts(item))
    try:
        text = value.decode() if isinstance(value, bytes) else value
        if not isinstance(text, str):
            raise BadRow("not_text", f"expected text, got {type(text).__name__}")
        text.encode()  # a lone surrogate stands for a byte that was no UTF-8
    except UnicodeError as error:
        raise BadRow("not_utf8", str(error)) from error
    return (text,)


def known(column: str, columns: Iterable[str], what: str) -> None:
    """Raise DataError, with the nearest name, when a set has no such column."""
    names = sorted(columns)
    if column not in names:
        hint = suggestion(column, names)
        raise DataError(f"{what} has no column '{column}'.{hint} Columns: {', '.join(names) or 'none'}")
