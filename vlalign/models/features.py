"""What towers make of pictures and texts; threads make the inputs of the next forward ready meanwhile."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlalign.models.feature_cache import FeatureCache, item_hash
from vlalign.models.tower import TowerModule
from vlalign.threads import ahead
from vlalign.types import Inputs

PART = 1024  # rows that a cache writes together
TEXTS = 8192  # texts whose tokens are counted and sorted together

Progress = Callable[[int], None]


class Ready(NamedTuple):
    """One picture: its features where they are known, else the inputs that give them."""

    digest: str
    row: Tensor | None
    inputs: Inputs


class Window(NamedTuple):
    """Some items in order: what is known of them, and the forwards that give the rest.

    `given`: how many items there were, those that have no row included.
    """

    given: int
    hashes: list[str]
    known: dict[str, Tensor]
    forwards: list[tuple[list[str], Inputs]]


def image_features(
    tower: TowerModule,
    items: Iterable[Any],
    cache: FeatureCache | None = None,
    batch: int = 64,
    progress: Progress | None = None,
    opening: Callable[[Any], Any] | None = None,
) -> Tensor:
    """A tower's features [N, width], float32 on the CPU, from the cache or else computed and put there.

    `items`: RGB pictures, or what `opening` makes one of, in threads; where it gives None, there is no row.
    `progress` is told how many more are done.
    """
    # A thread holds one picture at a time, many times larger than the inputs that are made of it.
    ready = ahead(partial(_ready, tower, cache, opening), items, most=batch)
    return _computed(tower, map(_joined, _windows(ready, batch)), cache, progress)


def text_features(
    tower: TowerModule,
    texts: Sequence[str],
    cache: FeatureCache | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """As `image_features`; texts of like length in tokens share a forward, so that little is padded."""
    distinct = list(dict.fromkeys(texts))
    prepare = partial(_prepared, tower, cache, batch)
    windows = ahead(prepare, _windows(distinct, TEXTS), threads=1)  # few tokenizers may be called by several
    rows = _computed(tower, windows, cache, progress)
    if progress:
        progress(len(texts) - len(distinct))
    place = {text: index for index, text in enumerate(distinct)}
    return rows[[place[text] for text in texts]]


@torch.no_grad()
def _computed(
    tower: TowerModule, windows: Iterable[Window], cache: FeatureCache | None, progress: Progress | None
) -> Tensor:
    """The rows of all windows. What is new is put into the cache a part at a time."""
    tell = progress or (lambda count: None)
    done: list[Tensor] = []
    fresh: dict[str, Tensor] = {}
    was_training = tower.training
    tower.eval()
    try:
        for given, hashes, rows, forwards in windows:
            tell(given - sum(len(digests) for digests, _ in forwards))
            for digests, inputs in forwards:
                out = tower({name: tower.take(tensor) for name, tensor in inputs.items()})
                rows |= _first(cache, fresh, digests, out.float().cpu())
                if len(fresh) >= PART:
                    _put(cache, fresh)
                tell(len(digests))
            done += [torch.stack([rows[digest] for digest in hashes])] if hashes else []
        _put(cache, fresh)
    finally:
        tower.train(was_training)
    empty = (0, tower.width) if tower.pools else (0, 0, tower.width)
    return torch.cat(done) if done else torch.zeros(empty)


def _first(
    cache: FeatureCache | None, fresh: dict[str, Tensor], digests: list[str], new: Tensor
) -> dict[str, Tensor]:
    """What came first under a hash stays, so that equal items have equal rows, now and when they are read."""
    found = cache.get(digests) if cache is not None else [None] * len(digests)
    rows = zip(digests, found, new, strict=True)
    return {digest: fresh.setdefault(digest, row) if known is None else known for digest, known, row in rows}


def _put(cache: FeatureCache | None, fresh: dict[str, Tensor]) -> None:
    if cache is not None and fresh:
        cache.put(list(fresh), torch.stack(list(fresh.values())))
    fresh.clear()


def _windows(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while window := list(islice(rest, size)):
        yield window


def _ready(
    tower: TowerModule, cache: FeatureCache | None, opening: Callable[[Any], Any] | None, item: Any
) -> Ready | None:
    """Open a picture, look it up, and make inputs of it when it is not known; None where it has no row."""
    picture = opening(item) if opening else item
    if picture is None:
        return None
    digest = item_hash(picture)
    row = cache.get([digest])[0] if cache is not None else None
    return Ready(digest, row, tower.process([picture]) if row is None else {})


def _joined(items: Sequence[Ready | None]) -> Window:
    """A window of pictures; those whose inputs are of unlike shapes go in forwards of their own."""
    ready = [item for item in items if item is not None]
    known = {digest: row for digest, row, _ in ready if row is not None}
    new = {digest: inputs for digest, _, inputs in ready if digest not in known}
    alike: dict[Any, list[str]] = {}
    for digest, inputs in new.items():
        shapes = tuple((name, tensor.shape) for name, tensor in inputs.items())
        alike.setdefault(shapes, []).append(digest)
    forwards = [(digests, _cat([new[digest] for digest in digests])) for digests in alike.values()]
    return Window(len(items), [digest for digest, _, _ in ready], known, forwards)


def _cat(parts: Sequence[Inputs]) -> Inputs:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _prepared(tower: TowerModule, cache: FeatureCache | None, batch: int, texts: Sequence[str]) -> Window:
    """Look a window's distinct texts up, and make inputs of those that are not known."""
    hashes = [item_hash(text) for text in texts]
    found = cache.get(hashes) if cache is not None else [None] * len(hashes)
    known = {digest: row for digest, row in zip(hashes, found, strict=True) if row is not None}
    new = {digest: text for digest, text in zip(hashes, texts, strict=True) if digest not in known}
    if not new:
        return Window(len(texts), hashes, known, [])
    digests = list(new)
    parts = _by_length(tower.process.lengths, tower.process(list(new.values())), batch)
    forwards = [([digests[row] for row in rows.tolist()], part) for rows, part in parts]
    return Window(len(texts), hashes, known, forwards)


def _by_length(
    lengths: Callable[[Inputs], Tensor], inputs: Inputs, batch: int
) -> Iterator[tuple[Tensor, Inputs]]:
    """Rows of like length together, each batch cut to its longest."""
    tokens = lengths(inputs)
    for rows in torch.split(tokens.argsort(stable=True), batch):
        longest = int(tokens[rows].max())
        yield rows, {name: tensor[rows, :longest] for name, tensor in inputs.items()}
