"""Metrics of a ranking in a random order: exact expectations, in closed form."""

from collections.abc import Sequence
from functools import cache
from math import comb, fsum, log2


def expected(kind: str, cutoff: int | None, found: Sequence[float], judged: Sequence[float]) -> float:
    """Of nDCG, RR, AP, R, P or Success: the mean over all orders of the documents that were `found`.

    Both are gains, above 0 where a document is relevant: `found` of what is ranked, `judged` of all that is
    known, found or not.
    """
    relevant, wanted = (sum(gain > 0 for gain in gains) for gains in (found, judged))
    if not relevant or not wanted:
        return 0.0
    last = len(found) if cutoff is None else min(cutoff, len(found))
    if kind == "nDCG":
        best = sorted(judged, reverse=True)[:cutoff]
        ideal = fsum(gain / log2(place + 1) for place, gain in enumerate(best, 1))
        return fsum(found) / len(found) * _discounts(last) / ideal
    if kind == "RR":
        return _reciprocal(len(found), relevant, last)
    if kind == "AP":
        return _precision(len(found), relevant, last) / wanted
    hits = relevant * last / len(found)
    if kind == "R":
        return hits / wanted
    if kind == "P":
        return hits / (last if cutoff is None else cutoff)
    return 1 - comb(len(found) - relevant, last) / comb(len(found), last)


@cache
def _discounts(last: int) -> float:
    return fsum(1 / log2(place + 1) for place in range(1, last + 1))


@cache
def _reciprocal(count: int, relevant: int, last: int) -> float:
    """Mean of 1 / place of the first relevant one, where that place is not after `last`."""
    ways = comb(count, relevant)
    places = range(1, min(last, count - relevant + 1) + 1)
    return fsum(comb(count - place, relevant - 1) / ways / place for place in places)


@cache
def _precision(count: int, relevant: int, last: int) -> float:
    """Mean of the sum of precisions at relevant places: a place is one with probability relevant / count."""
    others = (relevant - 1) / max(count - 1, 1)  # the same of a place before it
    return fsum((1 + (place - 1) * others) / place for place in range(1, last + 1)) * relevant / count
