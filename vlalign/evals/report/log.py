"""`log.jsonl` as it is read, by the report and by a run that goes on."""

import json
from pathlib import Path
from typing import Any

from vlalign.types import UserError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a log, in order. Raises UserError for one that is damaged."""
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline was cut while being written
    return [_decode(line, path, number) for number, line in enumerate(lines, start=1)]


def _decode(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: line {number} is damaged: it is {line[:40]!r}, not a JSON object; delete that line"
        )
    return value
