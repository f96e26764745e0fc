"""Precision at k of categories: Zhang et al. 2020 (ConVIRT), https://arxiv.org/abs/2010.00747.

Keys that score alike are taken to stand in a random order, as in `ranks`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vlalign.evals.metrics.ranks import TIE
from vlalign.types import UserError

ABSENT = -torch.inf  # the score of a key that is no candidate for a query


def precision(scores: Tensor, right: Tensor, ks: Sequence[int], tie: float = TIE) -> Tensor:
    """The share of right keys [Q, ks] among the first k of scores [Q, K], float64, the mean over ties.

    `right` is bool [Q, K]. Where a query has fewer candidates than k, all of them are its first. Raises
    UserError where it has none, or a score is no number.
    """
    candidates = (scores > ABSENT).sum(1)
    if lost := int(((candidates == 0) | scores.isnan().any(1)).sum()):
        raise UserError(f"{lost} of {len(scores)} queries have no candidate, or a score that is no number")
    first = scores.topk(min(max(ks), scores.shape[1])).values
    found = []
    for k in ks:
        taken = candidates.clamp(max=k)
        last = first.gather(1, taken[:, None] - 1)  # what the lowest of the first k scores
        above, near = scores > last + tie, scores >= last - tie
        tied = near & ~above
        left = taken - above.sum(1)
        drawn = left * (tied & right).sum(1) / tied.sum(1).double()
        found.append(((above & right).sum(1) + drawn) / taken)
    return torch.stack(found, dim=1)


def precisions(
    query: Tensor,
    key: Tensor,
    query_class: Tensor,
    key_class: Tensor,
    ks: Sequence[int],
    *,
    itself: bool = True,
    block: int = 512,
) -> Tensor:
    """`precision` [Q, ks] by inner product of rows [Q, D] and [K, D]; memory is `block` x K.

    Without `itself`, queries are the keys, row by row, and none is a candidate for itself.
    """
    parts = []
    for start in range(0, len(query), block):
        rows = slice(start, start + block)
        scores = query[rows] @ key.T
        if not itself:
            scores.diagonal(start).fill_(ABSENT)
        parts.append(precision(scores, query_class[rows, None] == key_class, ks))
    return torch.cat(parts)
