"""Which rows a step learns from: a pure function of (seed, step), so that resuming needs no state."""

from functools import lru_cache

import numpy as np


@lru_cache(maxsize=2)
def order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch, int64 [rows]."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


def steps_in_epoch(rows: int, batch: int) -> int:
    """Optimizer steps that see every row exactly once."""
    return -(-rows // batch)


def span(rows: int, batch: int, step: int) -> tuple[int, int, int]:
    """Epoch, start and stop of a step's rows in that epoch's order.

    Batches never straddle epochs and are full but for the last two of an epoch, which share what is left
    evenly: a contrastive step over a handful of rows would teach nothing, and leave some ranks without any.
    """
    steps = steps_in_epoch(rows, batch)
    epoch, place = divmod(step, steps)
    bounds = [min(batch * place, rows), min(batch * (place + 1), rows)]
    middle = (batch * (steps - 2) + rows + 1) // 2  # where the last batch of an epoch begins
    if steps > 1 and place == steps - 2:
        bounds[1] = middle
    if steps > 1 and place == steps - 1:
        bounds[0] = middle
    return epoch, bounds[0], bounds[1]


def share(start: int, stop: int, rank: int, world: int) -> tuple[int, int]:
    """A rank's contiguous part of [start, stop), the same size within one row for every rank."""
    return start + (stop - start) * rank // world, start + (stop - start) * (rank + 1) // world


def parts(rows: int, chunk: int | None, world: int) -> int:
    """Chunks of a step of `rows`, as many for every rank, for all ranks make the calls of a chunk together.

    A rank's chunks are even `share`s of its own rows, at most `chunk` each. Only where that is 1, and ranks
    have unequally many rows, do two share a chunk, for otherwise one would be empty.
    """
    least, most = rows // world, -(-rows // world)
    return min(-(-most // chunk), least) if chunk else 1


def smallest(rows: int, batch: int) -> int:
    """Rows of the smallest batch."""
    steps = steps_in_epoch(rows, batch)
    start, stop = span(rows, batch, steps - 1)[1:]
    return stop - start
