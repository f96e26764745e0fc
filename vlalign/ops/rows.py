"""What a table answers for one direction: rows of named reductions, whole rows, a histogram."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vlalign.ops.dist import Shares
from vlalign.types import Rows


@dataclass(frozen=True, slots=True)
class DenseRows:
    """Whole rows, for objectives that sort or rank; differentiable as usual, and O(rows x columns) memory."""

    logits: Tensor  # [Q, K]
    cosines: Tensor  # [Q, K]
    targets: Tensor  # [Q, K] relevance, bool or float
    mask: Tensor  # [Q, K] bool, pairs that count
    weight: Tensor  # [Q, K] how much they count, bool or float


@dataclass(frozen=True, eq=False)
class TableRows(Rows):
    """This rank's rows of one direction: named reductions [Q], 0 where there was nothing to reduce."""

    reductions: Mapping[str, Tensor]
    valid: Tensor  # [Q] bool: every named reduction had something to reduce
    shares: Shares = field(repr=False)
    _dense: Callable[[bool], DenseRows] = field(repr=False)
    _histogram: Callable[[int], Tensor] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        return self.reductions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reductions)

    def __len__(self) -> int:
        return len(self.reductions)

    def dense(self, fixed: bool = False) -> DenseRows:
        """The whole rows; every rank must ask, or none. `fixed`: what they meet learns nothing from them."""
        return self._dense(fixed)

    def histogram(self, bins: int) -> Tensor:
        """How many negatives of all rows and ranks have a cosine at each of `bins` points from -1 to 1.

        [bins] float64, differentiable, in the memory of a tile. Every rank must ask, or none.
        """
        return self._histogram(bins)

    def everyones(self, x: Tensor) -> Tensor:
        """`x` [Q] of every rank, differentiable."""
        return self.shares.gather(x)
