"""Which pairs a judge is certain enough of, and how often it errs on those."""

from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Any

import torch

from vlalign.evals.metrics.best_of import best_of
from vlalign.evals.metrics.calibration import risks
from vlalign.evals.metrics.judging import Lists
from vlalign.recipe.abstaining import Abstention

STEPS = 10  # of the table of coverage
DRAWS = (1, 2, 4, 8, 16, 32)
Flags = Sequence[Sequence[bool]]  # of each query's candidates


def certain(scores: Lists, counted: Flags, rule: Abstention | None) -> list[list[bool]]:
    """Which pairs are judged, by query; all of them without a rule. `scores`: calibrated probabilities.

    `counted`: of which pairs the coverage is the share; those as certain as the last one come in too.
    """
    least = 0.0
    if rule is not None and rule.distance is not None:
        least = rule.distance
    elif rule is not None and rule.coverage is not None:
        told = sorted((_distance(x) for x in _flat(scores, counted)), reverse=True)
        least = told[max(round(rule.coverage * len(told)), 1) - 1] if told else 0.0
    return [[rule is None or _distance(x) >= least for x in own] for own in scores]


def abstained(scores: Lists, right: Flags, counted: Flags, judged: Flags) -> dict[str, Any]:
    """Of pairs that tell of a judge: the share that is judged, the share of errors among these, and more.

    A probability above one half says that a pair is right, and may err. `risk_coverage`: the share of errors
    among the most certain so many; `aurc`: the area under that curve. `best_of`: how often the best-scored of
    n candidates is right, of queries with so many and some that are right.
    """
    probability, truth = list(_flat(scores, counted)), list(_flat(right, counted))
    kept = torch.tensor(list(_flat(judged, counted)))
    wrong = torch.tensor([(x > 0.5) != own for x, own in zip(probability, truth, strict=True)]).double()
    curve = risks(torch.tensor([_distance(x) for x in probability], dtype=torch.float64), wrong)
    places = [max(round(step * len(curve) / STEPS), 1) - 1 for step in range(1, STEPS + 1)]
    return {
        "unjudged": sum(not each for own in judged for each in own),
        "coverage": kept.double().mean().item(),
        "error": wrong[kept].mean().item() if kept.any() else None,
        "aurc": curve.mean().item(),
        "risk_coverage": [
            {"coverage": (at + 1) / len(curve), "error": curve[at].item()} for at in dict.fromkeys(places)
        ],
        "best_of": _best_of(scores, right, counted),
    }


def _best_of(scores: Lists, right: Flags, counted: Flags) -> dict[str, float]:
    """By n, as long as any query has so many candidates."""
    lists = [
        (list(compress(own, counts)), list(compress(truth, counts)))
        for own, truth, counts in zip(scores, right, counted, strict=True)
    ]
    tables = [
        best_of(torch.tensor(own, dtype=torch.float64), torch.tensor(truth))
        for own, truth in lists
        if any(truth)
    ]
    told = {n: [each[n - 1].item() for each in tables if len(each) >= n] for n in DRAWS}
    return {str(n): sum(own) / len(own) for n, own in told.items() if own}


def _distance(probability: float) -> float:
    return abs(probability - 0.5)


def _flat(lists: Sequence[Sequence[Any]], counted: Flags) -> Iterator[Any]:
    for own, counts in zip(lists, counted, strict=True):
        yield from compress(own, counts)
