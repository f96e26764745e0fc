"""`log.jsonl`: JSON lines. All but `time` is a function of recipe and seed, to the bit."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from vlalign.evals.report.log import read_lines
from vlalign.files import replace
from vlalign.train.folder import writing


class LogFile:
    """The log of a run, cut back to a checkpoint's step, then appended to."""

    def __init__(self, path: Path, step: int = 0) -> None:
        """Drop the lines after `step`, which will be written again, and a half-written last one.

        Raises UserError for a line that is damaged, and wherever the disk refuses.
        """
        self.out = path.parent
        with writing(self.out):
            if path.exists():
                kept = [line for line in read_lines(path) if step and line.get("step", 0) <= step]
                replace(path, lambda beside: _write(beside, kept))
            self.fresh = not path.exists() or path.stat().st_size == 0
            self.file: IO[str] = path.open("a", encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it survives the process from here on, and the machine from the next `sync` on."""
        with writing(self.out):
            self.file.write(_encode(line))
            self.file.flush()

    def sync(self) -> None:
        """Wait until every line has reached the disk."""
        with writing(self.out):
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; nothing is written after."""
        with writing(self.out):  # a line that a full disk refused is tried once more
            self.file.close()


def _encode(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _write(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(_encode(line) for line in lines), encoding="utf-8")
