"""What judges measured, by the content of what they saw: kept for good, and never measured again."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from vlalign.infer.pictures import called
from vlalign.types import BadRow, Item, UserError

WAIT = 60.0  # seconds for another process to have written


class ScoreStore:
    """A SQLite file that any number of processes and runs use at once."""

    def __init__(self, path: Path) -> None:
        """Raises UserError."""
        self.path = path
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = sqlite3.connect(path, timeout=WAIT)
            with self.file:
                self.file.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, numbers BLOB)")

    def get(self, keys: Sequence[bytes]) -> list[list[float] | None]:
        """What is kept of each, None where nothing is. Raises UserError."""
        found = list[list[float] | None]()
        with self._told():
            for key in keys:
                row = self.file.execute("SELECT numbers FROM scores WHERE key = ?", (key,)).fetchone()
                found.append(None if row is None else np.frombuffer(row[0], "<f8").tolist())
        return found

    def add(self, numbers: Mapping[bytes, Sequence[float]]) -> None:
        """All of them or none, on the disk; what is kept already stays as it is. Raises UserError."""
        rows = [(key, np.array(own, "<f8").tobytes()) for key, own in numbers.items()]
        with self._told(), self.file:
            self.file.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"store: {self.path} cannot be used: {error}; free it, or name another file with store=FILE"
            ) from error


def key(digest: str, query: Item, candidate: Item) -> bytes:
    """Of what a judge of this digest measures of a pair, by what both say and show. Raises BadRow."""
    told = f"{digest}\0{_said(query)}\0{_said(candidate)}"
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _said(item: Item) -> str:
    return repr((item.text, [_shown(each) for each in item.images]))


def _shown(image: Any) -> str:
    """Equal where the bytes of the file are, or the pixels of a picture that no file has."""
    if isinstance(image, Image):
        return called(image)
    try:
        stat = Path(image).stat()
        return _of_file(str(image), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise BadRow("missing_file", f"{image}: {error.strerror}") from error


@lru_cache(maxsize=2**16)
def _of_file(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
