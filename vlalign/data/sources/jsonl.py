"""A file of JSON objects, one a line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vlalign.data.json_rows import record
from vlalign.data.tables import Record, Table
from vlalign.registry import SOURCES
from vlalign.types import BadRow


@SOURCES.register("jsonl")
@dataclass(frozen=True, kw_only=True)
class JsonLines(Table):
    """Pictures by path. A line that is not UTF-8, or no JSON object, is skipped and counted."""

    def records(self, path: Path) -> Iterator[tuple[int, Record]]:
        """Every line that is not blank, with its number."""
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parse(line)


def _parse(line: bytes) -> Record:
    try:
        return record(line)
    except BadRow as error:
        return error
