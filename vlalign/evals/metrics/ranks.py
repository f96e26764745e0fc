"""Where the best right key of a query stands, found by counting keys above it; sorting nothing.

Ties are broken by a fair coin, in expectation: keys that score alike are taken to stand in a random order, and every
metric is its mean over those orders. So nothing depends on the order of rows or on the size of a block, and a model
that scores all keys alike gets exactly the chance level; `level` builds that model's ranks.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TIE = 1e-6  # cosines nearer than this are equal: float32 products of unit rows are not exact to less


class Ranks(NamedTuple):
    """Of each query [Q] int64: keys `above` its best right key, keys `tied` with it (itself too), `right` ones of these."""

    above: Tensor
    tied: Tensor
    right: Tensor


def shared(query_group: Tensor, key_group: Tensor) -> Tensor:
    """Bool [Q, K]: whether a query and a key have an id in common. Ids are [N], or [N, G] where a row has several."""
    query, key = (group.reshape(len(group), -1) for group in (query_group, key_group))
    right = torch.zeros(len(query), len(key), dtype=torch.bool, device=query.device)
    for q in query.unbind(1):
        for k in key.unbind(1):
            right |= q[:, None] == k
    return right


def count(scores: Tensor, right: Tensor, tie: float = TIE) -> Ranks:
    """Ranks of scores [Q, K], given which keys are right, bool [Q, K]. Raises ValueError when a query has none."""
    if not bool(right.any(1).all()):
        raise ValueError(f"{int((~right.any(1)).sum())} of {len(right)} queries have no right key to be ranked")
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    near = scores >= best - tie
    above = (scores > best + tie).sum(1)
    return Ranks(above, near.sum(1) - above, (near & right).sum(1))


def rank(
    query: Tensor, key: Tensor, query_group: Tensor, key_group: Tensor, block: int = 512, tie: float = TIE
) -> Ranks:
    """Ranks of every query [Q, D] among all keys [K, D] by inner product; memory is `block` x K.

    Groups are ids [N] or [N, G]: keys that share an id with a query are right for it, however many they are.
    """
    parts = [
        count(rows @ key.T, shared(group, key_group), tie)
        for rows, group in zip(query.split(block), query_group.split(block), strict=True)
    ]
    return Ranks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def level(query_group: Tensor, key_group: Tensor, block: int = 512) -> Ranks:
    """Ranks under a model that scores every key alike: any metric of them is its exact chance level."""
    right = torch.cat([shared(group, key_group).sum(1) for group in query_group.split(block)])
    return Ranks(torch.zeros_like(right), torch.full_like(right, len(key_group)), right)


def hits(ranks: Ranks, k: int) -> Tensor:
    """Chance [Q] float64 that a right key is among the first k: 0 or 1 where no wrong key ties with the best."""
    drawn = (k - ranks.above).clamp(min=0).minimum(ranks.tied)
    wrong = ranks.tied - ranks.right
    missed = _log_choose(wrong, drawn) - _log_choose(ranks.tied, drawn)  # hypergeometric: all drawn are wrong
    return torch.where(drawn > wrong, 1.0, 1.0 - missed.exp())


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    n, k = n.double(), k.double().minimum(n.double())
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def places(ranks: Ranks) -> Tensor:
    """Expected place [Q] float64 of the best right key, from 1."""
    return ranks.above + (ranks.tied + 1) / (ranks.right + 1).double()


def recall(ranks: Ranks, k: int) -> float:
    """Recall@k: the share of queries with a right key among the first k."""
    return hits(ranks, k).mean().item()


def median_rank(ranks: Ranks) -> float:
    """Median over queries of the place of the best right key."""
    return places(ranks).quantile(0.5).item()


def mrr(ranks: Ranks) -> float:
    """Mean reciprocal rank of the best right key."""
    cases, which = torch.stack(ranks, 1).unique(dim=0, return_inverse=True)
    values = torch.stack([_reciprocal(*case) for case in cases.tolist()])
    return values[which].mean().item()


def _reciprocal(above: int, tied: int, right: int) -> Tensor:
    """Mean of 1 / place of the first of `right` among `tied` in random order, after `above` others."""
    place = torch.arange(1, tied - right + 2)
    size = torch.full_like(place, tied)
    others = torch.full_like(place, right - 1)
    share = (_log_choose(size - place, others) - _log_choose(size, others + 1)).exp()
    return (share / (above + place)).sum()


def summary(ranks: Ranks) -> dict[str, float]:
    """Recall@1, 5 and 10 as `R@1`, `R@5`, `R@10`, and `mrr` and `median_rank`."""
    recalls = {f"R@{k}": recall(ranks, k) for k in (1, 5, 10)}
    return recalls | {"mrr": mrr(ranks), "median_rank": median_rank(ranks)}
