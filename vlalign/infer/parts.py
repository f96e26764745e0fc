"""Rows that processes write a line at a time, so that none is lost and none is made twice."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlalign.files import write_text


class Parts:
    """`out/part-RANK.jsonl` of each process: lines that name their `row`, in whatever order.

    A line that a kill has torn is dropped when its process comes again. What any process has written, under
    any number of them, is not asked for again.
    """

    def __init__(self, out: Path, rank: int, world: int) -> None:
        self.out, self.rank, self.world = out, rank, world
        self.own = out / f"part-{rank}.jsonl"
        text = self.own.read_text(encoding="utf-8") if self.own.exists() else ""
        whole, _, torn = text.rpartition("\n")
        if torn:
            write_text(self.own, f"{whole}\n" if whole else "")
        self.done = set(self.lines())

    def todo(self, rows: int) -> list[int]:
        """The rows of this process that nobody has done."""
        return [row for row in range(self.rank, rows, self.world) if row not in self.done]

    def add(self, row: int, told: Mapping[str, Any]) -> None:
        """Keep what was found of a row, on the disk; in ASCII, so that a torn line can be read over."""
        with self.own.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, **told}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> dict[int, dict[str, Any]]:
        """What all processes have so far, by row."""
        return {line["row"]: line for path in sorted(self.out.glob("part-*.jsonl")) for line in _whole(path)}


def _whole(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is not torn."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)
