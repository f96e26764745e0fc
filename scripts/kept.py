"""Cells of a study, a line each of a file, so that it goes on where it stopped."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlalign.files import whole_lines

Cell = TypeVar("Cell", bound=tuple[Any, ...])


class Kept(Generic[Cell]):
    """`rows`: what was found, by cell. A torn line is dropped, and so are cells that something else made."""

    def __init__(self, path: Path, kind: type[Cell], made: str) -> None:
        """`kind`: of cells, a NamedTuple; `made`: another string where a cell may come out otherwise."""
        self.path, self.made = path, made
        names: tuple[str, ...] = getattr(kind, "_fields", ())
        lines = [line for line in map(json.loads, whole_lines(path)) if line["made"] == made]
        self.rows: dict[Cell, Mapping[str, Any]] = {
            kind(*(line[name] for name in names)): line for line in lines
        }

    def add(self, cell: Cell, found: Mapping[str, Any]) -> None:
        """Keep one."""
        told: dict[str, Any] = getattr(cell, "_asdict", dict)()
        self.rows[cell] = {**told, "made": self.made, **found}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[cell]) + "\n")
