"""`step_XXXXXXXX/` folders: written whole or not at all, refused by name when a byte of them is wrong."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from vlalign.files import sync

MANIFEST = "manifest.json"
PATTERN = "step_" + "[0-9]" * 8


class Damaged(ValueError):
    """A checkpoint that is not as it was written; the message names the file."""


class Checkpoints:
    """The checkpoints of a run. `keep`: how many of the newest stay. `say`: where warnings go."""

    def __init__(self, out: Path, keep: int, say: Callable[[str], None]) -> None:
        self.out, self.keep, self.say = out, keep, say

    @contextmanager
    def writing(
        self, step: int, main: bool = True, alone: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> Iterator[Path]:
        """A folder to fill, by every process; `step_XXXXXXXX` once it is on the disk, gone after an error.

        `main`: whether this process makes and moves it. What is done inside `alone` is done by all processes
        or ends all of them, so that nothing is sealed when one could not write its part.
        """
        beside, place = self.out / f".step_{step:08d}.writing", self.out / f"step_{step:08d}"
        try:
            with alone():
                if main:
                    shutil.rmtree(beside, ignore_errors=True)
                    beside.mkdir()
            with alone():
                yield beside
            with alone():
                if main:
                    _seal(beside)
                    _remove(place)
                    beside.rename(place)
                    sync(self.out)
                    for old in self.all()[: -self.keep]:
                        _remove(old)
        finally:
            if main:  # on a full disk, half a checkpoint would keep others from writing
                shutil.rmtree(beside, ignore_errors=True)

    def all(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.out.glob(PATTERN))

    def newest(self) -> Path | None:
        """The newest whole checkpoint. A damaged one is told by name and set aside."""
        for folder in reversed(self.all()):
            try:
                verify(folder)
            except Damaged as damage:
                self.say(f"refused checkpoint {folder}: {damage}; trying the one before")
                aside = folder.with_name(f"{folder.name}.damaged")
                _remove(aside)
                folder.rename(aside)
            else:
                return folder
        return None

    def sweep(self) -> None:
        """Remove what a killed process left half written or half removed, and all but the newest damaged."""
        for folder in sorted(self.out.glob(f"{PATTERN}.damaged"))[:-1]:
            _remove(folder)
        for pattern in (".step_*.writing", ".step_*.removing", ".step_*.universal"):
            for folder in self.out.glob(pattern):
                shutil.rmtree(folder)


def verify(folder: Path) -> None:
    """Read every byte. Raises Damaged with the name of the first file that is not what was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        wanted = dict(manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from None
    if manifest.get("files") != _digest_of_names(wanted):
        raise Damaged(f"{MANIFEST} is not as it was written")
    for name, digest in wanted.items():
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if _digest(folder / name) != digest:
            raise Damaged(f"{name} is not as it was written (its sha256 differs)")


def _seal(folder: Path) -> None:
    """Write the manifest, and bring every file and folder to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {str(path.relative_to(folder)): _digest(path) for path in files}
    text = json.dumps({"files": _digest_of_names(digests), "sha256": digests}, indent=1)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of_names(digests: dict[str, str]) -> str:
    """Of the manifest itself, so that a flipped byte in it is blamed on it and not on a good file."""
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _remove(folder: Path) -> None:
    """Out of sight in one rename, then deleted, so that half a checkpoint is never found."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}.removing")
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden)
