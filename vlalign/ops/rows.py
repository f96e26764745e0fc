"""What a table answers for one direction: rows of named reductions, or whole rows."""

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


@dataclass(frozen=True, eq=False)
class TableRows(Rows):
    """This rank's rows of one direction: named reductions [Q], 0 where there was nothing to reduce."""

    reductions: Mapping[str, Tensor]
    valid: Tensor  # [Q] bool: every named reduction had something to reduce
    shares: Shares = field(repr=False)
    _dense: Callable[[], DenseRows] = field(repr=False)

    def __getitem__(self, name: str) -> Tensor:
        return self.reductions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reductions)

    def __len__(self) -> int:
        return len(self.reductions)

    def dense(self) -> DenseRows:
        """The whole rows; every rank must ask, or none."""
        return self._dense()

    def everyones(self, x: Tensor) -> Tensor:
        """`x` [Q] of every rank, differentiable."""
        return self.shares.gather(x)
