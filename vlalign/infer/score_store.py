"""What judges measured, by the content of what they saw: kept for good, and never measured again."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from vlalign.data.near_duplicates import picture_digest
from vlalign.infer.pictures import called
from vlalign.types import Item, UserError

WAIT = 60.0  # seconds for another process to have written


class ScoreStore:
    """A SQLite file that any number of processes and runs use at once."""

    def __init__(self, path: Path) -> None:
        """Raises UserError."""
        self.path = path
        with self._told():
            self.path = path = path.expanduser()
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
        except (sqlite3.Error, OSError, ValueError, RuntimeError) as error:  # no such user's home
            raise UserError(
                f"store: {self.path} cannot be used: {error}; free it, or name another file with store=FILE"
            ) from error


def key(digest: str, query: Item, candidate: Item) -> bytes:
    """Of what a judge of this digest measures of a pair, by what both say and show."""
    told = f"{digest}\0{said(query)}\0{said(candidate)}"
    return blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def said(item: Item) -> str:
    """Equal where texts are, and the bytes of files, or the pixels of pictures that no file has."""
    return repr((item.text, [_shown(each) for each in item.images]))


def _shown(image: Any) -> str:
    if isinstance(image, Image):
        return called(image)
    found = picture_digest(Path(image))
    return found.hex() if found else f"unread {image}"
