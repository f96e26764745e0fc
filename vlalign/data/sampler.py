"""Which rows a step learns from: a pure function of (seed, step), so that resuming needs no state."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from vlalign.specs import Ints, Sampler


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The rows of every step of a run, by their places in the order of an epoch.

    `batch` is of all ranks; `labels` [rows], where the sampler reads a field.
    """

    sampler: Sampler
    rows: int
    batch: int
    seed: int
    labels: Ints | None = None

    @cached_property
    def bounds(self) -> Ints:
        """Where the steps of an epoch begin and end, [steps + 1]. Raises RecipeError."""
        return self.sampler.bounds(self._labels, self.batch)

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.bounds) - 1

    @property
    def smallest(self) -> int:
        """Rows of the smallest batch."""
        return int(np.diff(self.bounds).min())

    @property
    def left_out(self) -> str:
        """What the sampler tells of rows that do not come, or come otherwise."""
        return self.sampler.left_out(self._labels, self.batch)

    def span(self, step: int) -> tuple[int, int, int]:
        """Epoch, start and stop of a step's rows in that epoch's order. Batches never straddle epochs."""
        epoch, place = divmod(step, self.steps)
        return epoch, int(self.bounds[place]), int(self.bounds[place + 1])

    def epoch(self, number: int) -> Ints:
        """The rows of an epoch in order, [bounds[-1]]."""
        return _epoch(self, number)

    @property
    def _labels(self) -> Ints:
        return np.zeros(self.rows, np.int64) if self.labels is None else self.labels


@lru_cache(maxsize=2)
def _epoch(order: Order, number: int) -> Ints:
    random = np.random.default_rng([order.seed, number])
    return order.sampler.order(order._labels, order.batch, random)


def even_end(rows: int, batch: int) -> Ints:
    """Bounds of batches that are full but for the last two, which share what is left evenly.

    A contrastive step over a handful of rows would teach nothing, and leave some ranks without any.
    """
    bounds = np.minimum(np.arange(-(-rows // batch) + 1) * batch, rows)
    if len(bounds) > 2:
        bounds[-2] = (bounds[-3] + rows + 1) // 2
    return bounds


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
