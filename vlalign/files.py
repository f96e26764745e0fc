"""Files that are there whole or not at all."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_folder() -> Path:
    """`VLALIGN_CACHE`, else the platform's cache folder for this user."""
    if own := os.environ.get("VLALIGN_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "vlalign"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "vlalign" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlalign"


def sync(path: Path) -> None:
    """Wait until a file or folder has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its place, then move it there in one go."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    beside = Path(name)
    try:
        write(beside)
        sync(beside)
        beside.chmod(0o644)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8."""
    replace(path, lambda beside: _write_text(beside, text))


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every reader accepts: UTF-8, no NaN. Raises ValueError on NaN."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def whole_lines(path: Path) -> list[str]:
    """Lines of a file that is appended to; one that a kill has torn is cut off. None where there is no file.

    Raises OSError.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole, _, torn = text.rpartition("\n")
    if torn:
        write_text(path, f"{whole}\n" if whole else "")
    return whole.splitlines()
