"""Batches of unlike rows, as in G-SimCLR (arXiv:2009.12007), or of like ones, as MCL (arXiv:2402.11816)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from vlalign.data.clusters import Clusters, most_batches
from vlalign.data.sampler import even_end
from vlalign.registry import SAMPLERS
from vlalign.specs import Ints
from vlalign.types import RecipeError


@SAMPLERS.register("clustered")
@dataclass(frozen=True, kw_only=True)
class Clustered:
    """Batches of rows whose clusters, the values of the field `by`, all differ or are all the same.

    `exclusive` (Chakraborty et al. 2020): no two rows of a batch share a cluster, so that no negative is a
    near copy of its anchor; it needs at least as many clusters as a batch has rows. There are as many full
    batches as can be. Of the rows left over, `spill` makes further batches at the end of an epoch, which may
    repeat a cluster; `drop` leaves them out. Where less than half a batch spills, the last full batch shares
    its rows with it evenly, for a step over a handful of rows would teach nothing: there is one full batch
    less then. The released code of G-SimCLR repeats clusters as soon as its smallest is used up.

    `inclusive` (Zhang et al. 2024): all rows of a batch are of one cluster, so that what its rows have in
    common cannot tell them apart. What a cluster has left after its last whole batch is dropped.

    Rows and batches are drawn anew each epoch. It holds for the batch of all processes; only a row that
    stands in for bad ones may break it.
    """

    by: str
    mode: Literal["exclusive", "inclusive"]
    leftover: Literal["drop", "spill"] = "drop"

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise ValueError("by must name a field, got nothing")
        if self.mode == "inclusive" and self.leftover == "spill":
            raise ValueError("leftover must be drop for inclusive batches, got spill")

    def bounds(self, labels: Ints, batch: int) -> Ints:
        """Where steps begin and end, [steps + 1]. Raises RecipeError."""
        full = self._full(labels, batch)
        if not self._spills:
            return np.arange(full + 1) * batch
        few = 0 < 2 * (len(labels) - full * batch) < batch
        whole = np.arange(full + 1 - few) * batch
        return np.append(whole, whole[-1] + even_end(len(labels) - int(whole[-1]), batch)[1:])

    def order(self, labels: Ints, batch: int, random: np.random.Generator) -> Ints:
        """The rows of an epoch, [bounds[-1]]; spilled batches are the last."""
        clusters = Clusters.of(labels, random)
        if self.mode == "inclusive":
            return random.permutation(clusters.inclusive(batch)).ravel()
        batches = random.permuted(clusters.exclusive(batch, random), axis=1)  # or ranks had unlike rows
        taken = random.permutation(batches).ravel()
        if not self._spills:
            return taken
        return np.append(taken, random.permutation(np.setdiff1d(np.arange(len(labels)), taken)))

    def left_out(self, labels: Ints, batch: int) -> str:
        """What is dropped or spilled, with counts."""
        left = len(labels) - self._full(labels, batch) * batch
        if not left:
            return ""
        some = f"data.sampler: {left:,} of {len(labels):,} rows"
        if self._spills:
            return f"{some} are spilled, in the last batches of an epoch, which may repeat a '{self.by}'"
        if self.mode == "exclusive":
            return f"{some} come in no batch of an epoch, too few of '{self.by}' being left; others in each"
        sizes = _sizes(labels)
        small = sizes[sizes < batch]
        return (
            f"{some} come in no batch of an epoch: what each '{self.by}' has after its last whole batch, "
            f"others each time; {len(small)} of {len(sizes)} have fewer rows than a batch, and these "
            f"{small.sum():,} rows are never learned from"
        )

    @property
    def _spills(self) -> bool:
        return self.leftover == "spill"

    def _full(self, labels: Ints, batch: int) -> int:
        """How many full batches there are, at least one. Raises RecipeError."""
        sizes = _sizes(labels)
        if self.mode == "exclusive":
            if len(sizes) < batch:
                raise RecipeError(
                    f"data.sampler: in a batch of {batch} each row needs a '{self.by}' of its own, and there "
                    f"are {len(sizes)}; make more clusters, or data.batch smaller"
                )
            return most_batches(sizes, batch)
        if sizes.max() < batch:
            raise RecipeError(
                f"data.sampler: no '{self.by}' has the {batch} rows of a batch, the largest has "
                f"{sizes.max()}; make fewer clusters, or data.batch smaller"
            )
        return int((sizes // batch).sum())


def _sizes(labels: Ints) -> Ints:
    return np.unique(labels, return_counts=True)[1]
