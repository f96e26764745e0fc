"""Where the best right key of a query stands, found by counting keys above it; sorting nothing.

Keys that score alike are taken to stand in a random order, and every metric is its mean over those orders. So
nothing depends on the order of rows or on the size of a block, and a model that scores all keys alike gets
exactly the chance level: `level` builds that model's ranks.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlalign.types import UserError

DENSE = 1 / 256  # share of right pairs above which all scores cost less than theirs alone
PAIRS = 8192  # right pairs that are scored together
TIE = 1e-6  # cosines nearer than this are equal: float32 products of unit rows are not exact to less


class Ranks(NamedTuple):
    """Of each query [Q]: the number of keys above its best right key, of keys tied, of right ones tied."""

    above: Tensor
    tied: Tensor
    right: Tensor


def shared(query_group: Tensor, key_group: Tensor) -> Tensor:
    """Bool [Q, K]: whether a query and a key share an id. Ids are [N], or [N, G] where a row has several."""
    query, key = (group.reshape(len(group), -1) for group in (query_group, key_group))
    right = torch.zeros(len(query), len(key), dtype=torch.bool, device=query.device)
    for q in query.unbind(1):
        for k in key.unbind(1):
            right |= q[:, None] == k
    return right


def count(scores: Tensor, right: Tensor, tie: float = TIE) -> Ranks:
    """Ranks of scores [Q, K], given which keys are right, bool [Q, K].

    Raises UserError when a query has no right key, or scores that are no numbers.
    """
    spare, wrong = torch.empty_like(scores), ~right
    best = spare.copy_(scores).masked_fill_(wrong, -torch.inf).amax(1)
    return _ranks(_sums(scores, wrong, best[:, None], spare, 1, tie), best)


def of_galleries(scores: Sequence[Tensor], right: Sequence[int], tie: float = TIE) -> Ranks:
    """Ranks in galleries of their own: scores [G_q] of each query, and the place of its one right key."""
    padded = pad_sequence([*scores], batch_first=True, padding_value=-torch.inf)
    truth = torch.zeros_like(padded, dtype=torch.bool)
    truth[torch.arange(len(padded)), torch.tensor(right)] = True
    return count(padded, truth, tie)


def rank(
    query: Tensor, key: Tensor, query_group: Tensor, key_group: Tensor, block: int = 512, tie: float = TIE
) -> Ranks:
    """Ranks of every query [Q, D] among all keys [K, D] by inner product; memory is `block` x K.

    Groups are ids [N] or [N, G]: keys that share an id with a query are right for it, however many they are.
    """
    parts = []
    for start in range(0, len(query), block):
        rows = slice(start, start + block)
        parts.append(count(query[rows] @ key.T, shared(query_group[rows], key_group), tie))
    return Ranks(*(torch.cat(column) for column in zip(*parts, strict=True)))


def rank_both(
    query: Tensor, key: Tensor, query_group: Tensor, key_group: Tensor, block: int = 512, tie: float = TIE
) -> tuple[Ranks, Ranks]:
    """`rank` of queries among keys, and of keys among queries, from one product of all with all."""
    best = _best(query, key, query_group, key_group, block)
    # All that outlives a block is made before: between large blocks of memory that come and go, small ones
    # that stay would make holes.
    rows, columns = (torch.zeros(3, len(side), dtype=torch.long) for side in (query, key))
    buffers = query.new_empty(2, min(block, len(query)), len(key))
    for start in range(0, len(query), block):
        some = slice(start, start + block)
        scores, spare = buffers[:, : len(query[some])]
        torch.mm(query[some], key.T, out=scores)
        wrong = shared(query_group[some], key_group).logical_not_()
        rows[:, some] = _sums(scores, wrong, best[0][some, None], spare, 1, tie)
        columns += _sums(scores, wrong, best[1], spare, 0, tie)
    return _ranks(rows, best[0]), _ranks(columns, best[1])


def _best(
    query: Tensor, key: Tensor, query_group: Tensor, key_group: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """The best right score of each query [Q] and of each key [K]."""
    best = query.new_full((len(query),), -torch.inf), query.new_full((len(key),), -torch.inf)
    for start in range(0, len(query), block):
        right = shared(query_group[start : start + block], key_group)
        if int(right.count_nonzero()) > right.numel() * DENSE:
            scores = (query[start : start + block] @ key.T).masked_fill_(~right, -torch.inf)
            best[0][start : start + block] = scores.amax(1)
            torch.maximum(best[1], scores.amax(0), out=best[1])
            continue
        for pairs in torch.split(right.nonzero(), PAIRS):
            at = pairs.T[0] + start, pairs.T[1]
            scores = (query[at[0]] * key[at[1]]).sum(1)
            for side in (0, 1):
                best[side].scatter_reduce_(0, at[side], scores, "amax")
    return best


def _sums(scores: Tensor, wrong: Tensor, best: Tensor, spare: Tensor, dim: int, tie: float) -> Tensor:
    """How many are above the best right one, how many above it or tied, and how many of these are right.

    Comparisons are written as numbers, which are summed several times faster than bools.
    """
    above = torch.gt(scores, best + tie, out=spare).sum(dim)
    near = torch.ge(scores, best - tie, out=spare)
    return torch.stack([above, near.sum(dim), near.masked_fill_(wrong, 0).sum(dim)]).long()


def _ranks(sums: Tensor, best: Tensor) -> Ranks:
    if lost := int((~best.isfinite()).sum()):
        raise UserError(f"{lost} of {len(best)} queries have no right key, or a score that is not finite")
    above, near, right = sums
    return Ranks(above, near - above, right)


def level(query_group: Tensor, key_group: Tensor, block: int = 512) -> Ranks:
    """Ranks under a model that scores every key alike: any metric of them is its exact chance level."""
    starts = range(0, len(query_group), block)
    right = torch.cat(
        [shared(query_group[start : start + block], key_group).sum(1, dtype=torch.int32) for start in starts]
    )
    return Ranks(torch.zeros_like(right), torch.full_like(right, len(key_group)), right)


def hits(ranks: Ranks, k: int) -> Tensor:
    """Probability [Q] that a right key is among the first k: 0 or 1 where no wrong key ties with it."""
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
    sure = ranks.tied == ranks.right
    total = (1 / (ranks.above[sure] + 1).double()).sum().item()
    cases = Counter(zip(*(column[~sure].tolist() for column in ranks), strict=True))
    return (total + sum(times * reciprocal(*case) for case, times in cases.items())) / len(sure)


def reciprocal(above: int, tied: int, right: int) -> float:
    """Mean of 1 / place of the first of `right` among `tied` in random order, after `above` others."""
    place = torch.arange(1, tied - right + 2)
    size = torch.full_like(place, tied)
    others = torch.full_like(place, right - 1)
    share = (_log_choose(size - place, others) - _log_choose(size, others + 1)).exp()
    return (share / (above + place)).sum().item()


def summary(ranks: Ranks) -> dict[str, float]:
    """Recall@1, 5 and 10 as `R@1`, `R@5`, `R@10`, and `mrr` and `median_rank`."""
    recalls = {f"R@{k}": recall(ranks, k) for k in (1, 5, 10)}
    return recalls | {"mrr": mrr(ranks), "median_rank": median_rank(ranks)}
