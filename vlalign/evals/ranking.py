"""What a run is worth: the metrics of ir-measures, means over the queries of the judgements.

A query that the run leaves out counts 0, and so does one without a positive.
"""

import re
from collections.abc import Mapping, Sequence
from heapq import nlargest
from math import fsum, inf, log2
from types import MappingProxyType
from typing import Any, Literal

import torch

from vlalign.evals.metrics.calibration import risk_coverage
from vlalign.evals.metrics.random_order import expected
from vlalign.evals.runs import Qrels, Run, completed, ordered
from vlalign.registry import suggestion
from vlalign.specs import EvalRow
from vlalign.types import DataError

Gain = Literal["linear", "exponential"]  # of a grade g: g, or 2^g - 1
Table = dict[str, dict[str, float]]  # metric -> query -> value

METRICS = ("nDCG@10", "RR@10", "AP", "P@1", "R@1", "R@10")
NAMES = {"nDCG": False, "RR": False, "AP": False, "R": True, "P": True, "Success": True}  # needs a cutoff?
LARGEST = 2**12  # gain, for the provider needs time for all levels below it, squared, in every query


def parse(name: str) -> tuple[str, int | None]:
    """`nDCG@10` -> nDCG, 10. Raises ValueError for what is no metric."""
    kind, at, cutoff = name.partition("@")
    if kind not in NAMES:
        raise ValueError(
            f"'{name}' is no metric of a ranking.{suggestion(kind, list(NAMES))} Known: {', '.join(NAMES)}"
        )
    if not at and NAMES[kind] or at and not re.fullmatch("[1-9][0-9]{0,8}", cutoff):
        raise ValueError(f"'{name}' needs a whole number of places, such as {kind}@10")
    return kind, int(cutoff) if at else None


def check(names: Sequence[str]) -> None:
    """Raises ValueError for what a recipe cannot ask."""
    if not names:
        raise ValueError(f"metrics is empty; name at least one, such as {METRICS[0]}")
    for name in names:
        try:
            parse(name)
        except ValueError as error:
            raise ValueError(f"metrics: {error}") from error


def label(name: str, gain: Gain) -> str:
    """A metric's name in results: `nDCG_linear@10`, for it means nothing without its gain."""
    return name.replace("nDCG", f"nDCG_{gain}")


def measured(run: Run, qrels: Qrels, names: Sequence[str], gain: Gain) -> Table:
    """Every metric of every query of `qrels`, in their order. Raises DataError for a grade that is too high.

    Of pytrec_eval; RR@k is msmarco's. Both are given places for scores, so that only our rule breaks ties.
    """
    import ir_measures

    grades = _grades(qrels, gain)
    ranks = {
        query: {document: float(-place) for place, document in enumerate(documents)}
        for query, documents in ordered(completed(run, qrels)).items()
    }
    asked = {}
    for name in names:
        kind, cutoff = parse(name)
        measure = getattr(ir_measures, kind)
        if kind == "nDCG" and gain == "exponential":  # dcg="exp-log2" would be Perl's, to five digits
            levels = {grade for own in grades.values() for grade in own.values()}
            measure = measure(gains={grade: _gain(grade, gain) for grade in levels})
        asked[measure if cutoff is None else measure @ cutoff] = label(name, gain)
    table = {name: dict.fromkeys(qrels, 0.0) for name in asked.values()}
    for found in ir_measures.iter_calc(list(asked), grades, ranks):
        table[asked[found.measure]][found.query_id] = float(found.value)
    return table


def chance(run: Run, qrels: Qrels, names: Sequence[str], gain: Gain) -> Table:
    """What `measured` would give on average were each query's documents of the run in a random order."""
    table: Table = {label(name, gain): {} for name in names}
    for query, own in _grades(qrels, gain).items():
        judged = [_gain(grade, gain) for grade in own.values()]
        found = [_gain(own.get(document, 0), gain) for document in run.get(query, {})]
        for name in names:
            table[label(name, gain)][query] = expected(*parse(name), found, judged)
    return table


def means(table: Table) -> dict[str, float]:
    """Of each metric over its queries."""
    return {name: fsum(values.values()) / len(values) for name, values in table.items()}


def _gain(grade: int, gain: Gain) -> int:
    return grade if gain == "linear" else 2**grade - 1


def _grades(qrels: Qrels, gain: Gain) -> Qrels:
    """Grades below 0 are 0: so are they for TREC."""
    most = LARGEST if gain == "linear" else int(log2(LARGEST))
    for query, own in qrels.items():
        if own and max(own.values()) > most:
            raise DataError(
                f"query '{query}' has a grade of {max(own.values())}; with a gain that is {gain} the highest "
                f"is {most}"
            )
    return {
        query: {document: max(grade, 0) for document, grade in own.items()} for query, own in qrels.items()
    }


def row(
    dataset: str,
    run: Run,
    qrels: Qrels,
    names: Sequence[str],
    gain: Gain,
    exhibits: Mapping[str, Any] = MappingProxyType({}),
) -> EvalRow:
    """All that a run says, beside the same documents in a random order; numbers of each query as exhibits.

    `aurc`: the area under the risk-coverage curve; risk is 1 - P@1, confidence the best score less the next.
    `without_positive`: how many queries count 0 whatever the run says. Raises DataError.
    """
    run = completed(run, qrels)
    table, level = (of(run, qrels, names, gain) for of in (measured, chance))
    first, random = (of(run, qrels, ("P@1",), gain)["P@1"] for of in (measured, chance))
    risk = 1 - torch.tensor(list(first.values()), dtype=torch.float64)
    sure = torch.tensor([_margin(scores) for scores in run.values()], dtype=torch.float64)
    positives = [sum(grade > 0 for grade in own.values()) for own in qrels.values()]
    lost = positives.count(0)
    of_queries = {"query": list(qrels), "ranked": [len(scores) for scores in run.values()]}
    of_queries |= {"positives": positives} | {name: list(values.values()) for name, values in table.items()}
    return EvalRow(
        dataset=dataset,
        task="reranking",
        metrics=means(table) | {"aurc": risk_coverage(sure, risk), "without_positive": float(lost)},
        chance=means(level) | {"aurc": 1 - fsum(random.values()) / len(random)},
        exhibits={"gain": gain, "queries": of_queries, **exhibits},
    )


def _margin(scores: Mapping[str, float]) -> float:
    best = nlargest(2, scores.values())
    return best[0] - best[1] if len(best) > 1 else inf if best else -inf
