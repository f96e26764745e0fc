"""A file of comma-separated values with a header."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlalign.data.tables import Record, Table
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError


@SOURCES.register("csv")
@dataclass(frozen=True, kw_only=True)
class Csv(Table):
    r"""Pictures by path. `delimiter`: `"\t"` reads a TSV file. Rows are numbered without the header."""

    delimiter: str = ","

    def __post_init__(self) -> None:
        """Refuse what the csv module would."""
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, got {self.delimiter!r}")

    def records(self, path: Path) -> Iterator[tuple[int, Record]]:
        """Every row with its number; a row shorter than the header lacks the columns that it is short of."""
        # Bytes that are no UTF-8 become lone surrogates, so that only their own row is lost.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = csv.DictReader(file, delimiter=self.delimiter)
            if rows.fieldnames is None:
                raise DataError(f"{path} is empty; its first line must name the columns")
            number = 0
            while True:
                number += 1
                try:
                    row = next(rows)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield number, BadRow("not_csv", str(error))
                    continue
                yield number, {key: row[key] for key in rows.fieldnames if row[key] is not None}
