"""Group ordering by soft sorting, Shvetsova et al. 2023, https://arxiv.org/abs/2301.02009, section 3."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.reductions import NEGATIVES, POSITIVES, Expected
from vlalign.ops.rows import TableRows
from vlalign.ops.sorting import odd_even_sort
from vlalign.registry import OBJECTIVES
from vlalign.types import UserError


@OBJECTIVES.register("groco")
@dataclass(frozen=True, kw_only=True)
class GroCo:
    """The positives of a row should take the ranks above its `hardest` negatives, in whatever order.

    Cosines of both groups, each ascending, pass through an odd-even network of Cauchy swaps; the loss is the
    mean cross-entropy of each one's probability to end in its own group's ranks. As in the released code a
    row learns and what it is compared with does not: the other direction teaches that. Rows that have fewer
    negatives than `hardest` after masking are sorted with those they have. Sorting is of all positives of a
    row, and its memory grows with their number cubed: meant for a handful, not for labels that half the batch
    shares. A selector's weights count as yes or no.

    `beta`: steepness of a swap. The paper's is 1, at which cosines, never further apart than 2, keep the loss
    between 0.147 and 0.264 with one positive and 10 negatives, and at 0.202 where all are equal; at 10 it
    reaches from 0.015 to 0.475.
    """

    beta: float = 10.0
    hardest: int = 10

    # Not read, but a row without either has nothing to sort.
    reductions = {
        "positives": Expected(over=POSITIVES, temperature=1.0),
        "negatives": Expected(over=NEGATIVES, temperature=1.0),
    }

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be > 0, got {self.beta}")
        if self.hardest < 1:
            raise ValueError(f"hardest must be >= 1, got {self.hardest}")

    @property
    def least_rows(self) -> int:
        """Of a batch: a positive and as many negatives as are sorted."""
        return self.hardest + 1

    def __call__(self, rows: TableRows) -> Tensor:
        """Losses [Q]. Raises UserError when no row can have so many negatives."""
        dense = rows.dense(fixed=True)
        if self.hardest >= dense.cosines.shape[1]:
            raise UserError(
                f"groco: hardest is {self.hardest}, and each row meets {dense.cosines.shape[1]} others, its "
                "positives among them; set a smaller hardest or a larger data.batch"
            )
        positive, negative = (dense.mask & each for each in (dense.targets > 0, dense.targets <= 0))
        sizes = torch.stack([negative.sum(1).clamp(max=self.hardest), positive.sum(1)], 1)
        groups = {tuple(size) for size in sizes[rows.valid].tolist()}
        losses = 0 * dense.cosines.sum(1)  # also where no row is sorted, ranks meet in the backward
        for size in sorted(groups):
            alike = rows.valid & (sizes == sizes.new_tensor(size)).all(1)
            low, high = (
                dense.cosines[alike].masked_fill(~among[alike], -torch.inf).topk(count).values.flip(1)
                for among, count in zip((negative, positive), size, strict=True)
            )
            losses = losses.index_put((alike,), ordering_loss(low, high, self.beta))
        return losses


def ordering_loss(negatives: Tensor, positives: Tensor, beta: float) -> Tensor:
    """Losses [n] of ascending scores [n, K] and [n, P]."""
    count = negatives.shape[1]
    _, ranks = odd_even_sort(torch.cat([negatives, positives], 1), beta)
    low, high = ranks[..., :count].sum(-1), ranks[..., count:].sum(-1)  # they add up to 1
    right = torch.cat([low[:, :count], high[:, count:]], 1)
    return -right.clamp(min=torch.finfo(right.dtype).tiny).log().mean(1)
