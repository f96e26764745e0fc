"""Local tar shards read in any order: each is walked once, and the cache keeps where its members lie."""

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any, overload

import numpy as np

from vlalign.data.catalogue import cache_folder, writing
from vlalign.data.hashing import hash63
from vlalign.data.index import Entry, Index, texts
from vlalign.files import replace
from vlalign.types import BadRow, DataError

MAX_TEXT = 2**20  # bytes of captions; more than that is no caption
NOWHERE = (-1, -1)
Span = tuple[int, int]  # offset and size of a member in its shard


@dataclass(frozen=True)
class Layout:
    """What makes a sample. `caption`: an extension, or `json.KEY`; `lines`: every line is a caption."""

    image: tuple[str, ...]
    caption: str
    lines: bool


def expand(patterns: Sequence[str]) -> list[Path]:
    """Paths from `{00..12}`, `{a,b}`, `*` and folders of .tar files, sorted within each. Raises DataError."""
    paths: list[Path] = []
    for pattern in patterns:
        for path in map(Path, _braces(str(Path(pattern).expanduser()))):
            found = sorted(path.glob("*.tar")) if path.is_dir() else sorted(map(Path, glob(str(path))))
            if not found:
                raise DataError(
                    f"no shard is at {path}" + (f" (from {pattern})" if str(path) != pattern else "")
                )
            paths += found
    return paths


def _braces(pattern: str) -> Iterator[str]:
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = []
    for place, part in enumerate(parts):
        count = re.fullmatch(r"(\d+)\.\.(\d+)", part) if place % 2 else None
        if count:
            numbers = range(int(count[1]), int(count[2]) + 1)
            choices.append([f"{number:0{len(count[1])}d}" for number in numbers])
        else:
            choices.append(part.split(",") if place % 2 else [part])
    return map("".join, product(*choices))


class Shards(Sequence[Entry]):
    """Every sample of the shards as an entry, made when it is asked for: memory holds offsets, not text."""

    def __init__(self, paths: Sequence[Path], layout: Layout, classes: Sequence[str]) -> None:
        """`classes`: what the numbers of .cls members stand for; without any the numbers are the names."""
        self.paths, self.layout, self.classes = list(paths), layout, tuple(classes)
        stems = [path.stem for path in paths]
        self.names = stems if len(set(stems)) == len(stems) else list(map(str, paths))
        self.skipped: dict[str, list[str]] = defaultdict(list)
        keys, spans = [], []
        for path, name in zip(self.paths, self.names, strict=True):
            shard = _indexed(path, layout)
            keys.append(shard["keys"])
            spans.append(shard["spans"])
            for reason, rows in json.loads(str(shard["skipped"])).items():
                self.skipped[reason] += [f"{name}/{row}" if row else name for row in rows]
        self._keys, self._spans = keys, spans
        self._starts = np.cumsum([0, *map(len, keys)])
        self.labelled = all(bool((part[:, 2, 0] >= 0).all()) for part in spans)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, row: int) -> Entry: ...
    @overload
    def __getitem__(self, row: slice) -> list[Entry]: ...
    def __getitem__(self, row: int | slice) -> Entry | list[Entry]:
        """The sample, its caption and class read from the shard."""
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not 0 <= row < len(self):
            raise IndexError(row)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        within = row - int(self._starts[shard])
        path = self.paths[shard]
        image, caption, label = (tuple(span) for span in self._spans[shard][within].tolist())
        name = self._label(read_span(path, label)) if label != NOWHERE else ""
        found = captions(read_span(path, caption), self.layout) if caption != NOWHERE else (name,)
        fields = {"label": name} if self.labelled else {}
        return Entry(f"{self.names[shard]}/{self._keys[shard][within]}", found, (path, image), fields)

    def _label(self, content: bytes) -> str:
        text = content.decode(errors="replace").strip()
        return self.classes[int(text)] if text.isdecimal() and int(text) < len(self.classes) else text


def read_span(path: Path, span: Span) -> bytes:
    """A member's bytes."""
    with path.open("rb") as file:
        file.seek(span[0])
        return file.read(span[1])


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


def _indexed(path: Path, layout: Layout) -> dict[str, Any]:
    """The shard's samples, from the cache when the file has not changed since."""
    state = path.stat()
    folder = cache_folder() / "shards"
    name = f"{hash63('1', path.resolve(), state.st_size, state.st_mtime_ns, *astuple(layout)):016x}"
    kept = folder / f"{name}.npz"
    if not kept.exists():
        index = _walk(path, layout)
        spans = np.array([entry.place for entry in index.entries], dtype=np.int64).reshape(-1, 3, 2)
        keys = np.array([entry.id for entry in index.entries], dtype=np.str_)
        with writing(folder):
            replace(kept, lambda beside: _save(beside, keys, spans, np.array(json.dumps(index.skipped))))
    with np.load(kept, allow_pickle=False) as file:
        return dict(file)


def _save(path: Path, keys: np.ndarray, spans: np.ndarray, skipped: np.ndarray) -> None:
    with path.open("wb") as file:  # given a name, numpy would add `.npz` to it
        np.savez_compressed(file, keys=keys, spans=spans, skipped=skipped)


def _walk(path: Path, layout: Layout) -> Index:
    """Group the members by name, then check every sample's structure; nothing is decoded."""
    samples: dict[str, dict[str, Span]] = defaultdict(dict)
    index, size = Index(), path.stat().st_size
    try:
        with tarfile.open(path, mode="r:") as tar:
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
                cut = member.offset_data + member.size > size
                samples[key][extension] = NOWHERE if cut else (member.offset_data, member.size)
    except tarfile.TarError:
        index.skip("damaged_shard", "")
    for key, members in samples.items():
        with index.row(key):
            index.add(_sample(path, key, members, layout))
    return index


def _sample(path: Path, key: str, members: dict[str, Span], layout: Layout) -> Entry:
    """An entry whose place is three spans: picture, caption, class. Raises BadRow."""
    if NOWHERE in members.values():
        raise BadRow("truncated", "the shard ends inside this sample")
    image = next((members[name] for name in layout.image if name in members), None)
    caption, label = members.get(layout.caption.partition(".")[0], NOWHERE), members.get("cls", NOWHERE)
    if image is None or (caption == NOWHERE and label == NOWHERE):
        raise BadRow("missing_column", f"of {', '.join(members)}")
    text = caption if caption != NOWHERE else label
    if text[1] > MAX_TEXT:
        raise BadRow("too_many_bytes", f"{text[1]} bytes of text, the limit is {MAX_TEXT}")
    content = read_span(path, text)
    found = captions(content, layout) if caption != NOWHERE else texts(content)
    return Entry(key, found, (image, caption, label))
