"""Objects of a JSON file, found once and read again by where they lie: memory holds places, not text."""

import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from vlalign.types import BadRow, DataError

Span = tuple[int, int]  # where an object begins in its file, and its bytes
BOM = b"\xef\xbb\xbf"
ARRAY = re.compile(rb"(?:" + BOM + rb")?\s*\[\s*\{")  # how a file begins that is one array of objects
TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]"]|[^\s,:{}\[\]"]++', re.DOTALL)


@dataclass(frozen=True, slots=True)
class JsonFile:
    """A file as it was when it was looked through; an object is read only from that very state of it."""

    path: Path
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, path: Path) -> Self:
        """The file as it is now. Raises DataError."""
        try:
            if not path.is_file():
                raise DataError(f"{path} is no file; a path is relative to where the command is run")
            state = path.stat()
        except (OSError, ValueError) as error:  # also: a NUL in the name
            raise DataError(f"{str(path)!r} cannot be read: {error}") from error
        return cls(path, state.st_size, state.st_mtime_ns)

    def objects(self) -> Iterator[tuple[int, Span, bytes]]:
        """Line, place and content of each line that is not blank, or of each element of one array.

        Elements are numbered from 1, as lines are. Raises DataError where the file cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                found = _elements if ARRAY.match(file.read(4096)) else _lines
                yield from found(self.path)
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error}") from error

    def read(self, spans: Iterable[Span]) -> list[bytes]:
        """The contents of those places. Raises BadRow: `missing_file`, `unreadable_file`, `changed_file`."""
        try:
            with self.path.open("rb") as file:
                contents = [_at(file, span) for span in spans]
                now = os.fstat(file.fileno())  # after the bytes: who wrote before they were read is seen
        except FileNotFoundError as error:
            raise BadRow("missing_file", f"{self.path} is not there any more") from error
        except OSError as error:
            raise BadRow("unreadable_file", f"{self.path}: {error}") from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified):
            raise BadRow("changed_file", f"{self.path} is not the file that was looked through; start again")
        return contents


def record(content: bytes) -> dict[str, Any]:
    """The object of a line. Raises BadRow: `not_utf8`, `not_json`."""
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", str(error)) from error
    if not isinstance(found, dict):
        raise BadRow("not_json", f"expected an object, got {type(found).__name__}")
    return found


def _at(file: Any, span: Span) -> bytes:
    file.seek(span[0])
    content: bytes = file.read(span[1])
    return content


def _lines(path: Path) -> Iterator[tuple[int, Span, bytes]]:
    with path.open("rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, (start, len(line)), line
            start += len(line)


def _elements(path: Path) -> Iterator[tuple[int, Span, bytes]]:
    """Of an array, its end missing perhaps: what is between its brackets, and objects that stand after it."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for number, (start, stop) in enumerate(_outermost(content), 1):
            yield number, (start, stop - start), content[start:stop]


def _outermost(content: mmap.mmap) -> Iterator[tuple[int, int]]:
    depth, start, base = 0, -1, 0  # how many brackets are open, and where and in how many one is that counts
    for token in TOKEN.finditer(content, 3 if content[:3] == BOM else 0):
        first, last = token.span()
        mark = content[first : first + 1]
        if mark == b'"' and last == first + 1:  # it never ends: what follows cannot be told apart
            start = first if start < 0 else start
            break
        if mark in (b"]", b"}"):
            depth = max(depth - 1, 0)
            if start >= 0 and depth <= base:
                yield start, last
                start = -1
        elif mark in (b"[", b"{"):
            if start < 0 and (depth or mark == b"{"):
                start, base = first, depth
            depth += 1
        elif start < 0:
            yield first, last
    if start >= 0:
        yield start, len(content)
