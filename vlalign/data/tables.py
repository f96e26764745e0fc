"""Rows of files whose columns hold a picture and its captions: what `jsonl`, `csv` and `parquet` share."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlalign.data.images import decode_cell
from vlalign.data.index import Decoded, Entry, Index, Indexed, known, texts
from vlalign.types import BadRow, DataError, Licence, Limits

Record = Mapping[str, Any] | BadRow  # a row by column, or why it could not be read


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what. `caption`: one column or several, of strings or of lists of strings.

    `id`: the row's name in counts and errors (else its number); `concept` and `label` become fields.
    """

    image: str = "image"
    caption: str | tuple[str, ...] = "caption"
    id: str | None = None
    concept: str | None = None
    label: str | None = None

    @property
    def captions(self) -> tuple[str, ...]:
        """The caption columns."""
        return (self.caption,) if isinstance(self.caption, str) else self.caption

    def required(self) -> tuple[str, ...]:
        """Every column that a row must have."""
        named = (self.image, *self.captions, self.id, self.concept, self.label)
        return tuple(dict.fromkeys(column for column in named if column is not None))

    def entry(self, record: Mapping[str, Any], name: str, place: Any) -> Entry:
        """A record as an entry; `name` is its id unless a column has it. Raises BadRow."""
        if missing := [column for column in self.required() if column not in record]:
            raise BadRow("missing_column", f"no {', '.join(missing)}")
        captions = texts([record[column] for column in self.captions])
        named = {"concept": self.concept, "label": self.label}
        fields = {key: _cell(record, column) for key, column in named.items() if column}
        return Entry(_cell(record, self.id) if self.id else name, captions, place, fields)


@dataclass(frozen=True, kw_only=True)
class Table(Columns):
    """One file of rows. Paths of pictures are relative to it; `licence` is told in the report."""

    path: str
    licence: str = "not stated"

    @abstractmethod
    def records(self, path: Path) -> Iterable[tuple[int, Record]]:
        """Every row with its number, from 1. Raises DataError for a file that is not of this form."""

    def reader(self, path: Path, limits: Limits) -> Callable[[Any], Decoded]:
        """What decodes the value of the image column."""
        return partial(decode_cell, path.parent, limits)

    def build(self, limits: Limits = Limits()) -> Indexed:
        """Index the file; a row with a damaged structure is skipped and counted. Raises DataError."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise DataError(f"{path} is no file; a path is relative to where the command is run")
        index, seen = Index(), set[str]()
        try:
            for number, record in self.records(path):
                name = f"{path.name}:{number}"
                if isinstance(record, BadRow):
                    index.skip(record.reason, name)
                    continue
                seen.update(record)
                with index.row(name):
                    index.add(self.entry(record, name, record.get(self.image)))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        for column in self.required() if seen else ():
            known(column, seen, str(path))
        licences = [Licence(name=path.name, licence=self.licence, source=str(path))]
        return Indexed(index.entries, self.reader(path, limits), licences, index.skipped, what=str(path))


def _cell(record: Mapping[str, Any], column: str) -> str:
    """One string, from text or a number."""
    value = record[column]
    found = texts(str(value) if isinstance(value, int | float) else value)
    if len(found) != 1 or not found[0].strip():
        raise BadRow("missing_column", f"{column} is empty or a list")
    return found[0].strip()
