"""Rows that processes write a line at a time, so that none is lost and none is made twice."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlalign.files import whole_lines


class Parts:
    """`out/part-RANK.jsonl` of each process: lines that name their `row`, in whatever order.

    A line that a kill has torn is dropped when its process comes again. What any process has written, under
    any number of them, is not asked for again, but for rows that were `bad`: their fault may have passed.
    """

    def __init__(self, out: Path, rank: int, world: int) -> None:
        self.out, self.rank, self.world = out, rank, world
        self.own = out / f"part-{rank}.jsonl"
        whole_lines(self.own)
        self.done = self.lines().good

    def todo(self, rows: int) -> list[int]:
        """The rows of this process that nobody has done."""
        return [row for row in range(self.rank, rows, self.world) if row not in self.done]

    def add(self, row: int, told: Mapping[str, Any]) -> None:
        """Keep what was found of a row, on the disk; in ASCII, so that a torn line can be read over."""
        with self.own.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"row": row, **told}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> "Lines":
        """What all processes have so far, by row."""
        return Lines(sorted(self.out.glob("part-*.jsonl")))


class Lines(Mapping[int, dict[str, Any]]):
    """Lines of files by their row, each read whenever it is wanted: memory holds places, not lines.

    `good`: rows with a line that is not `bad`, which is then the one.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.places, self.good = dict[int, tuple[Path, int]](), set[int]()
        for path in paths:
            for told, start in _whole(path):
                row = told["row"]
                if "bad" not in told or row not in self.good:
                    self.places[row] = path, start
                if "bad" not in told:
                    self.good.add(row)

    def __getitem__(self, row: int) -> dict[str, Any]:
        path, start = self.places[row]
        with path.open("rb") as file:
            file.seek(start)
            told: dict[str, Any] = json.loads(file.readline())
        return told

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _whole(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Every line that is not torn, and its place."""
    with path.open("rb") as file:
        start = 0
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line), start
            start += len(line)
