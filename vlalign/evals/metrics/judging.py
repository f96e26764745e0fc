"""How well scores tell right candidates from wrong ones, in a query and over all; how far they agree."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vlalign.evals.metrics.calibration import calibration_error
from vlalign.evals.metrics.paired import paired
from vlalign.evals.metrics.pooled_auc import auc
from vlalign.evals.metrics.ranks import Ranks, count, hits, mrr, reciprocal

Lists = Sequence[Sequence[float]]  # of each query's candidates


def first_places(scores: Lists, right: Sequence[Sequence[bool]]) -> Ranks:
    """Of each query's best right candidate; all have one. Raises UserError."""
    most = max(map(len, scores))
    padded = torch.full((len(scores), most), -torch.inf, dtype=torch.float64)
    truth = torch.zeros(len(scores), most, dtype=torch.bool)
    for place, (own, labels) in enumerate(zip(scores, right, strict=True)):
        padded[place, : len(own)] = torch.tensor(own, dtype=torch.float64)
        truth[place, : len(own)] = torch.tensor(labels)
    return count(padded, truth)


def reciprocals(ranks: Ranks) -> list[float]:
    """Reciprocal rank of each query's best right candidate, expected over the orders of what ties."""
    return [reciprocal(*each) for each in zip(*(column.tolist() for column in ranks), strict=True)]


def quality(scores: Lists, right: Sequence[Sequence[bool]], log_odds: bool = False) -> dict[str, float]:
    """`R@1` and `mrr` of queries with a right candidate, `auc` and best `f1` of all pairs pooled.

    `log_odds`: scores are such; `calibration_error` is theirs, and `kappa`, Cohen 1960, that of odds above 1
    with what is right. Raises UserError where nothing is right, or nothing wrong.
    """
    asked = [place for place, own in enumerate(right) if any(own)]
    flat, truth = _pooled(scores), _pooled(right).bool()
    found = auc(flat[truth], flat[~truth])
    ranks = first_places([scores[at] for at in asked], [right[at] for at in asked])
    found |= {"R@1": hits(ranks, 1).mean().item(), "mrr": mrr(ranks)}
    del found["threshold"]
    if log_odds:
        from sklearn.metrics import cohen_kappa_score

        found["calibration_error"] = calibration_error(flat, truth)
        found["kappa"] = float(cohen_kappa_score(truth, flat > 0))
    return found


def agreement(scores: Mapping[str, Lists]) -> list[dict[str, Any]]:
    """Spearman's and Kendall's rank correlation (tau-b) of every two; None where one is constant."""
    from scipy.stats import kendalltau, spearmanr

    flat = {name: _pooled(own).numpy() for name, own in scores.items()}
    found = []
    for one, other in combinations(flat, 2):
        varied = np.ptp(flat[one]) > 0 and np.ptp(flat[other]) > 0
        told = {
            name: float(measure(flat[one], flat[other]).statistic) if varied else None
            for name, measure in (("spearman", spearmanr), ("kendall", kendalltau))
        }
        found.append({"judges": [one, other], **told})
    return found


def gain(
    lists: Lists, other: Lists, right: Sequence[Sequence[bool]], asked: Sequence[int], concept: Any
) -> dict[str, float]:
    """In reciprocal rank, paired over concepts, whose queries are not independent."""
    told = [
        reciprocals(first_places([each[at] for at in asked], [right[at] for at in asked]))
        for each in (lists, other)
    ]
    _, place = np.unique(concept[asked], return_inverse=True)
    counts = np.bincount(place)
    own, less = (np.bincount(place, weights=each) / counts for each in told)
    return paired(own.tolist(), less.tolist())


def interval_alpha(units: NDArray[np.int64], values: NDArray[np.float64]) -> float | None:
    """Krippendorff's alpha of values [R], each of one rater, of interval scale; `units` [R]: what was rated.

    1: raters agree; 0: no more than values dealt at random. Units of one rating do not count. None where no
    unit has two, or all values are one.
    """
    counts = np.bincount(units)
    paired_up = counts[units] > 1
    units, values = units[paired_up], values[paired_up]
    if not len(values) or np.ptp(values) == 0:
        return None
    counts = np.bincount(units)
    means = np.bincount(units, values) / counts.clip(1)
    within = ((values - means[units]) ** 2 * counts[units] / (counts[units] - 1)).sum() / len(values)
    return float(1 - within / values.var(ddof=1))


def _pooled(lists: Sequence[Sequence[float]]) -> Tensor:
    return torch.tensor([x for own in lists for x in own], dtype=torch.float64)
