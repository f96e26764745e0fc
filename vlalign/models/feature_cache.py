"""Features of towers on disk, by content: equal pixels or text and an equal tower, equal features."""

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from vlalign import files
from vlalign.models.tower import TowerModule
from vlalign.threads import ahead

DIGEST = 16  # bytes
ROW = 32  # bits of a place that tell the row of a part
TICK = 2.0  # seconds: file systems tell the time of a change no finer than this, at worst
PAUSE = 0.1  # seconds between two listings of a folder that may have changed unseen
PACKAGES = ("torch", "torchvision", "pillow", "timm", "open_clip_torch", "transformers", "tokenizers")

Halves = NDArray[np.uint64]  # [2, N]: both halves of N hashes


def item_hash(item: Image | str) -> str:
    """Hex digest of an RGB image's size and pixels, or of a text."""
    if isinstance(item, str):
        return hashlib.blake2b(item.encode(), digest_size=DIGEST).hexdigest()
    image = item if item.mode == "RGB" else item.convert("RGB")
    size = f"{image.width}x{image.height} ".encode()
    return hashlib.blake2b(size + image.tobytes(), digest_size=DIGEST).hexdigest()


def tower_key(tower: TowerModule) -> str:
    """Hex digest of what decides a tower's output: weights, config, preprocessing, versions of packages."""
    from vlalign import __version__

    digest = hashlib.blake2b(digest_size=DIGEST)
    told = [type(tower).__name__, str(tower.net), tower.config, tower.process.describe(), __version__]
    for package in sorted({*PACKAGES, tower.library}):
        with suppress(PackageNotFoundError):
            told.append(f"{package} {version(package)}")
    digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class FeatureCache:
    """Rows [width] under item hashes, a folder for each tower. Parts are only added, whole.

    Parts are mapped into memory, which holds 24 bytes a row besides. It never stops a run: damaged parts are
    left out, and where the folder cannot be listed or written, rows stay in memory; warnings tell of it.
    """

    def __init__(self, folder: str | Path | None = None, key: str = "") -> None:
        """`key`: `tower_key`. Without a folder it forgets everything when it is dropped."""
        self.folder = None if folder is None else Path(folder) / key
        self._reads = self._writes = self.folder is not None
        self._changed = -1  # the folder's time of change, first seen at `_since`
        self._since = self._listed = -TICK  # seconds of the monotonic clock
        self._seen: set[str] = set()
        self._parts: list[Tensor] = []  # features [rows, width]
        self._runs: list[NDArray[np.uint64]] = []  # [3, rows]: halves of a hash and its place, sorted
        self._lock = threading.Lock()
        self._scan()

    @classmethod
    def of(cls, tower: TowerModule, folder: str | Path) -> Self:
        """The cache of a tower as it is now."""
        return cls(folder, tower_key(tower))

    def __len__(self) -> int:
        return sum(run.shape[1] for run in self._runs)

    def get(self, hashes: Sequence[str]) -> list[Tensor | None]:
        """Each row, or None where it is not there."""
        wanted = _halves(hashes)
        with self._lock:
            places = self._find(wanted)
            if None in places:
                self._scan()  # another process may have added it
                places = self._find(wanted)
            return [None if at is None else self._parts[at >> ROW][at & (1 << ROW) - 1] for at in places]

    def put(self, hashes: Sequence[str], features: Tensor) -> None:
        """Add rows [N, width] as one part."""
        if len(hashes) != len(features):
            raise ValueError(f"expected a hash a row, got {len(hashes)} hashes and {len(features)} rows")
        if not hashes:
            return
        digests = torch.from_numpy(_halves(hashes).T.copy().view(np.uint8))
        part = {"hashes": digests, "features": features.detach().cpu().contiguous()}
        with self._lock:
            if not (self._writes and self._write(part) and self._scan(anew=True)):
                self._add(part)

    def _write(self, part: Mapping[str, Tensor]) -> bool:
        """Whether the disk took it. After a refusal it is not asked again."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        seal = _seal(part)
        assert self.folder is not None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = self.folder / f"{seal}.part"
            files.replace(whole, lambda beside: save_file(dict(part), beside, metadata={"seal": seal}))
        except (OSError, SafetensorError) as error:
            self._writes = False
            warnings.warn(f"{self.folder}: features cannot be kept here: {error}", stacklevel=4)
        return self._writes

    def _scan(self, anew: bool = False) -> bool:
        """Map the parts that were not seen yet; whether the folder can be listed. `anew`: do list it."""
        paths = [path for path in self._list(anew) if path.name not in self._seen]
        self._seen.update(path.name for path in paths)
        for path, part in zip(paths, ahead(_read, paths), strict=True):
            if part is not None:
                self._add(part)
                continue
            warnings.warn(
                f"{path}: this part of the feature cache is damaged; its rows are computed again",
                stacklevel=4,
            )
        return self._reads

    def _list(self, anew: bool) -> list[Path]:
        """The parts in the folder; none when it has not changed. After a refusal it is not asked again."""
        if self.folder is None or not self._reads:
            return []
        now = time.monotonic()
        try:
            changed = self.folder.stat().st_mtime_ns  # before the listing, so that what comes after is seen
            if changed != self._changed:
                self._changed, self._since = changed, now
            elif not anew and (now < self._listed + PAUSE or self._since + TICK < self._listed):
                return []  # within a tick of its time a folder may change again and keep that time
            self._listed = now
            return [self.folder / name for name in sorted(os.listdir(self.folder)) if name.endswith(".part")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._reads = False
            warnings.warn(f"{self.folder}: features cannot be looked up here: {error}", stacklevel=5)
            return []

    def _add(self, part: Mapping[str, Tensor]) -> None:
        """Sort a part's hashes in, into a run at least as long: so a row is sorted log(parts) times."""
        halves = part["hashes"].numpy().view(np.uint64).T
        places = (len(self._parts) << ROW) + np.arange(halves.shape[1], dtype=np.uint64)
        self._parts.append(part["features"])
        run = np.vstack([halves, places])
        while self._runs and self._runs[-1].shape[1] <= run.shape[1]:
            run = np.hstack([self._runs.pop(), run])
        self._runs.append(run[:, run[0].argsort(kind="stable")])

    def _find(self, wanted: Halves) -> list[int | None]:
        """Places. Of hashes that share their first half one is found, and the others are computed anew."""
        places: list[int | None] = [None] * wanted.shape[1]
        for run in self._runs:
            at = np.searchsorted(run[0], wanted[0]).clip(max=run.shape[1] - 1)
            for which in (run[:2, at] == wanted).all(0).nonzero()[0].tolist():
                places[which] = int(run[2, at[which]])
        return places


def _halves(hashes: Sequence[str]) -> Halves:
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64).reshape(-1, 2).T


def _read(path: Path) -> dict[str, Tensor] | None:
    """A part, mapped into memory; None when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            part = {name: file.get_tensor(name) for name in ("hashes", "features")}
            return part if (file.metadata() or {}).get("seal") == _seal(part) else None
    except (SafetensorError, OSError):
        return None


def _seal(part: Mapping[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST)
    for name in ("hashes", "features"):
        digest.update(f"{part[name].dtype} {tuple(part[name].shape)} ".encode())
        digest.update(part[name].numpy().data)
    return digest.hexdigest()
