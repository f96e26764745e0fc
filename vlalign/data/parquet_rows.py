"""Rows of a Parquet file as the objects that a JSON file would hold, each found by its number."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from vlalign.data.json_rows import JsonFile, Span
from vlalign.types import BadRow, DataError


@dataclass(frozen=True, slots=True)
class ParquetFile:
    """What `JsonFile` is to a file of lines; each process holds the whole table, as Arrow has it."""

    path: Path
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file as it is now. Raises DataError."""
        found = JsonFile.of(path)
        return cls(path, found.size, found.modified)

    def objects(self) -> Iterator[tuple[int, Span, bytes]]:
        """Number from 1, place and content of each row. Raises DataError where the file cannot be read."""
        table = _table(self)
        for row in range(table.num_rows):
            yield row + 1, (row, 1), _content(table, row)

    def read(self, spans: Iterable[Span]) -> list[bytes]:
        """The contents of those places. Raises BadRow: `changed_file`, `unreadable_file`."""
        try:
            if self.of(self.path) != self:
                raise BadRow("changed_file", f"{self.path} is not the file that was looked through")
            table = _table(self)
        except DataError as error:
            raise BadRow("unreadable_file", str(error)) from error
        return [_content(table, row) for row, _ in spans]


@lru_cache(maxsize=2)
def _table(file: ParquetFile) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(file.path)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file.path} cannot be read as Parquet: {error}") from error


def _content(table: Any, row: int) -> bytes:
    """A row as JSON. A value that JSON has not is an empty object there, which no format takes for a text."""
    try:
        told = {
            name: _value(column[row]) for name, column in zip(table.column_names, table.columns, strict=True)
        }
    except UnicodeDecodeError:
        return b"\xff"  # so that it is counted as `not_utf8`, as such a line would be
    return json.dumps(told, default=lambda value: {}).encode()


def _value(cell: Any) -> Any:
    """As Python has it; an empty object where it has none, such as of a date after the year 9999."""
    try:
        return cell.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return {}
