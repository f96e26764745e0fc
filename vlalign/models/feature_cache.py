"""Features of locked towers on disk, by content: equal pixels or text and an equal tower, equal features."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from vlalign import files
from vlalign.models.tower import TowerModule

BLOCK = 1024  # rows that are looked up, computed and written together
DIGEST = 16  # bytes


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
    digest.update(json.dumps([*told, version(tower.library)], sort_keys=True, default=str).encode())
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FeatureCache:
    """Rows [width] under item hashes, a folder for each tower. Parts are only added, whole."""

    def __init__(self, folder: str | Path, key: str) -> None:
        """`key`: `tower_key`. Damaged parts are ignored with a warning."""
        self.folder = Path(folder) / key
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, Tensor] = {}
        self._seen: set[str] = set()
        self._scan()

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, hashes: Sequence[str]) -> list[Tensor | None]:
        """Each row, or None where it is not there."""
        if any(digest not in self._rows for digest in hashes):
            self._scan()  # another process may have added it
        return [self._rows.get(digest) for digest in hashes]

    def put(self, hashes: Sequence[str], features: Tensor) -> None:
        """Add rows [N, width] as one part."""
        from safetensors.torch import save_file

        if len(hashes) != len(features):
            raise ValueError(f"expected a hash a row, got {len(hashes)} hashes and {len(features)} rows")
        if not hashes:
            return
        digests = torch.tensor([list(bytes.fromhex(digest)) for digest in hashes], dtype=torch.uint8)
        part = {"hashes": digests, "features": features.detach().cpu().contiguous()}
        seal = _seal(part)
        whole = self.folder / f"{seal}.part"
        files.replace(whole, lambda beside: save_file(part, beside, metadata={"seal": seal}))
        self._seen.add(whole.name)
        self._rows |= dict(zip(hashes, part["features"], strict=True))

    def _scan(self) -> None:
        """Read the parts that were not read yet."""
        for part in sorted(self.folder.glob("*.part")):
            if part.name not in self._seen:
                self._seen.add(part.name)
                self._rows |= _read(part)


def _read(path: Path) -> dict[str, Tensor]:
    """The rows of a part, mapped into memory rather than read; none when it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            part = {name: file.get_tensor(name) for name in ("hashes", "features")}
            whole = (file.metadata() or {}).get("seal") == _seal(part)
    except (SafetensorError, OSError):
        part, whole = {}, False
    if not whole:
        warnings.warn(
            f"{path}: this part of the feature cache is damaged; its rows are computed again", stacklevel=4
        )
        return {}
    digests = [bytes(row).hex() for row in part["hashes"].numpy()]
    return dict(zip(digests, part["features"], strict=True))


def _seal(part: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=DIGEST)
    for name in ("hashes", "features"):
        digest.update(f"{part[name].dtype} {tuple(part[name].shape)} ".encode())
        digest.update(part[name].numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def features(
    tower: TowerModule,
    items: Iterable[Any],
    cache: FeatureCache | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """A tower's features [N, width], float32 on the CPU, from the cache or else computed and put there.

    `items`: RGB images or texts, taken one block at a time. `progress` is told how many more are done.
    """
    was_training = tower.training
    tower.eval()
    try:
        done = [
            _block(tower, block, cache, batch, progress or (lambda count: None)) for block in _blocks(items)
        ]
    finally:
        tower.train(was_training)
    return torch.cat(done) if done else torch.zeros(0, tower.width)


def _blocks(items: Iterable[Any]) -> Iterator[list[Any]]:
    rest = iter(items)
    while block := list(islice(rest, BLOCK)):
        yield block


def _block(
    tower: TowerModule,
    items: list[Any],
    cache: FeatureCache | None,
    batch: int,
    progress: Callable[[int], None],
) -> Tensor:
    hashes = [item_hash(item) for item in items]
    known = cache.get(hashes) if cache is not None else [None] * len(items)
    rows = {digest: row for digest, row in zip(hashes, known, strict=True) if row is not None}
    new = {digest: item for digest, item in zip(hashes, items, strict=True) if digest not in rows}
    progress(len(items) - len(new))
    order = sorted(new, key=lambda digest: len(new[digest]) if isinstance(new[digest], str) else 0)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        inputs = tower.process([new[digest] for digest in some])
        out = tower({name: tensor.to(tower.device) for name, tensor in inputs.items()})
        rows |= dict(zip(some, out.float().cpu(), strict=True))
        progress(len(some))
    if cache is not None and order:
        cache.put(order, torch.stack([rows[digest] for digest in order]))
    return torch.stack([rows[digest] for digest in hashes])
