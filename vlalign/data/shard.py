"""One local tar shard, walked once: the cache keeps where its members lie."""

import json
import os
import tarfile
import zipfile
import zlib
from collections import defaultdict
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from vlalign.data.catalogue import writing
from vlalign.data.hashing import hash63
from vlalign.data.index import Entry, Index, texts
from vlalign.files import cache_folder, replace
from vlalign.types import BadRow, DataError

MAX_TEXT = 2**20  # bytes of captions; more than that is no caption
NOWHERE = (-1, -1)
# What numpy and zipfile say of an index that is not there, or that was damaged on the disk.
NO_INDEX = (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
Span = tuple[int, int]  # offset and size of a member in its shard


@dataclass(frozen=True)
class Layout:
    """What makes a sample. `caption`: an extension, or `json.KEY`; `lines`: every line is a caption."""

    image: tuple[str, ...]
    caption: str
    lines: bool


@dataclass(frozen=True, slots=True)
class Shard:
    """A file as it was when it was indexed; from then on a member is read only from that very state of it."""

    path: Path
    size: int
    modified: int  # nanoseconds

    @classmethod
    def of(cls, path: Path) -> Self:
        """The shard as it is now. Raises DataError when it cannot be read."""
        try:
            with path.open("rb") as file:
                state = os.fstat(file.fileno())
        except OSError as error:
            raise DataError(f"the shard {path} cannot be read: {error.strerror}") from error
        return cls(path, state.st_size, state.st_mtime_ns)

    def read(self, span: Span) -> bytes:
        """A member's bytes. Raises BadRow: `missing_shard`, `unreadable_shard`, `changed_shard`."""
        try:
            with self.path.open("rb") as file:
                file.seek(span[0])
                content = file.read(span[1])
                now = os.fstat(file.fileno())  # after the bytes: who wrote before they were read is seen
        except FileNotFoundError as error:
            raise BadRow("missing_shard", f"{self.path} is not there any more") from error
        except OSError as error:
            raise BadRow("unreadable_shard", f"{self.path}: {error}") from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified):
            raise BadRow("changed_shard", f"{self.path} is not the file that was indexed")
        return content

    def index(self, layout: Layout) -> dict[str, Any]:
        """`keys`, `spans` and `skipped` of its samples, from the cache when it was walked in this state.

        Raises DataError when the shard cannot be read: the rows lost by it must not be kept as skipped.
        """
        folder = cache_folder() / "shards"
        name = f"{hash63('2', self.path.resolve(), self.size, self.modified, *astuple(layout)):016x}"
        kept = folder / f"{name}.npz"
        try:
            return _load(kept)
        except NO_INDEX:
            index = _walk(self, layout)
        found = {
            "keys": np.array([entry.id for entry in index.entries], dtype=np.str_),
            "spans": np.array([entry.place for entry in index.entries], dtype=np.int64).reshape(-1, 3, 2),
            "skipped": np.array(json.dumps(index.skipped)),
        }
        with writing(folder):
            replace(kept, lambda beside: _save(beside, found))
        return found


def captions(content: bytes, layout: Layout) -> tuple[str, ...]:
    """The captions of a member, stripped, none empty. Raises BadRow."""
    extension, _, key = layout.caption.partition(".")
    if extension == "json":
        found = texts(_member_of(content, key))
    else:
        (text,) = texts(content)
        found = tuple(text.splitlines()) if layout.lines else (text,)
    return tuple(stripped for text in found if (stripped := text.strip()))


def _member_of(content: bytes, key: str) -> Any:
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", str(error)) from error
    except (ValueError, RecursionError) as error:
        raise BadRow("not_json", str(error)) from error
    if not isinstance(value, dict) or key not in value:
        raise BadRow("missing_column", f"no '{key}'")
    return value[key]


def _load(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in ("keys", "spans", "skipped")}


def _save(path: Path, index: dict[str, Any]) -> None:
    with path.open("wb") as file:  # given a name, numpy would add `.npz` to it
        np.savez_compressed(file, **index)


def _walk(shard: Shard, layout: Layout) -> Index:
    """Group the members by name, then check every sample's structure; nothing is decoded."""
    samples: dict[str, dict[str, Span]] = defaultdict(dict)
    index = Index()
    try:
        with tarfile.open(shard.path, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if not member.isreg() or not stem:
                    continue
                key, extension = f"{folder}/{stem}".lstrip("/"), extension.lower()
                if extension in samples[key]:
                    if extension in layout.image:
                        index.skip("duplicate_id", key)
                    continue
                cut = member.offset_data + member.size > shard.size
                samples[key][extension] = NOWHERE if cut else (member.offset_data, member.size)
    except tarfile.TarError:
        index.skip("damaged_shard", "")
    except OSError as error:
        raise _interrupted(shard, error) from error
    for key, members in samples.items():
        with index.row(key):
            index.add(_sample(shard, key, members, layout))
    return index


def _sample(shard: Shard, key: str, members: dict[str, Span], layout: Layout) -> Entry:
    """An entry whose place is three spans: picture, caption, class. Raises BadRow; DataError, see `index`."""
    if NOWHERE in members.values():
        raise BadRow("truncated", "the shard ends inside this sample")
    image = next((members[name] for name in layout.image if name in members), None)
    caption, label = members.get(layout.caption.partition(".")[0], NOWHERE), members.get("cls", NOWHERE)
    if image is None or (caption == NOWHERE and label == NOWHERE):
        raise BadRow("missing_column", f"of {', '.join(members)}")
    text = caption if caption != NOWHERE else label
    if text[1] > MAX_TEXT:
        raise BadRow("too_many_bytes", f"{text[1]} bytes of text, the limit is {MAX_TEXT}")
    try:
        content = shard.read(text)
    except BadRow as error:  # never the sample's own fault, but the shard's at this moment
        raise _interrupted(shard, error) from error
    found = captions(content, layout) if caption != NOWHERE else texts(content)
    return Entry(key, found, (image, caption, label))


def _interrupted(shard: Shard, error: Exception) -> DataError:
    return DataError(f"the shard {shard.path} could not be indexed: {error}; run it again")
