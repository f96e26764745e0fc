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
Split = Callable[[Inputs, int], Iterable[tuple[Tensor, Inputs]]]


class Window(NamedTuple):
    """Some items in order: what is known of them, and the forwards that give the rest."""

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
    prepare = partial(_prepared, tower, cache, batch, _whole, opening)
    return _computed(tower, ahead(prepare, _windows(items, batch)), cache, progress)


def text_features(
    tower: TowerModule,
    texts: Sequence[str],
    cache: FeatureCache | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> Tensor:
    """As `image_features`; texts of like length in tokens share a forward, so that little is padded."""
    distinct = list(dict.fromkeys(texts))
    prepare = partial(_prepared, tower, cache, batch, partial(_by_length, tower.process.lengths), None)
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
        for hashes, rows, forwards in windows:
            tell(len(hashes) - sum(len(digests) for digests, _ in forwards))
            for digests, inputs in forwards:
                out = tower({name: tensor.to(tower.device) for name, tensor in inputs.items()})
                rows |= _first(cache, fresh, digests, out.float().cpu())
                if len(fresh) >= PART:
                    _put(cache, fresh)
                tell(len(digests))
            done += [torch.stack([rows[digest] for digest in hashes])] if hashes else []
        _put(cache, fresh)
    finally:
        tower.train(was_training)
    return torch.cat(done) if done else torch.zeros(0, tower.width)


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


def _prepared(
    tower: TowerModule,
    cache: FeatureCache | None,
    batch: int,
    split: Split,
    opening: Callable[[Any], Any] | None,
    items: Sequence[Any],
) -> Window:
    """Look a window's items up, and make inputs of those that are not known."""
    opened = [item for item in map(opening, items) if item is not None] if opening else items
    hashes = [item_hash(item) for item in opened]
    found = cache.get(hashes) if cache is not None and hashes else [None] * len(hashes)
    known = {digest: row for digest, row in zip(hashes, found, strict=True) if row is not None}
    new = {digest: item for digest, item in zip(hashes, opened, strict=True) if digest not in known}
    if not new:
        return Window(hashes, known, [])
    digests = list(new)
    parts = split(tower.process(list(new.values())), batch)
    return Window(hashes, known, [([digests[row] for row in rows.tolist()], part) for rows, part in parts])


def _whole(inputs: Inputs, batch: int) -> Iterator[tuple[Tensor, Inputs]]:
    yield torch.arange(len(next(iter(inputs.values())))), inputs


def _by_length(
    lengths: Callable[[Inputs], Tensor], inputs: Inputs, batch: int
) -> Iterator[tuple[Tensor, Inputs]]:
    """Rows of like length together, each batch cut to its longest."""
    tokens = lengths(inputs)
    for rows in torch.split(tokens.argsort(stable=True), batch):
        longest = int(tokens[rows].max())
        yield rows, {name: tensor[rows, :longest] for name, tensor in inputs.items()}
