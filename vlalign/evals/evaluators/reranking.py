"""The order of each query's own candidates, beside the first stage that found them and both together."""

from dataclasses import dataclass, replace
from math import isfinite
from typing import Annotated

import torch

from vlalign.evals.candidates import Asked
from vlalign.evals.metrics.calibration import calibration_error
from vlalign.evals.metrics.paired import paired
from vlalign.evals.ranking import METRICS, Gain, check, label, row
from vlalign.evals.runs import Run
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import EvalRow, SourceSpec
from vlalign.types import Limits, Scorer


@EVALUATORS.register("reranking")
@dataclass(frozen=True, kw_only=True)
class Reranking:
    """nDCG@k, RR@k, AP, R@k, P@k and Success@k, as ir-measures writes them, over the candidates of `data`.

    A candidate's `label` is its grade, right above 0. R@k: the share of a query's right ones that is among
    its first k, Success@k: whether one is. `gain` of a grade g in nDCG: g, or `exponential` 2^g - 1. Of equal
    scores the candidate with the later id comes first. A query without a right candidate counts 0. What is
    right and no candidate counts as not found where `data` knows of it, as `beir` and `mrb` do; else it is
    not known here, and the evaluator `run` measures against all judgements.

    `first_stage`: the candidates' number that found them; it is measured as well, and so is `fused`, first
    stage + `weight` * reranker, with the paired differences to it. `limit`: only the first so many queries.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    metrics: tuple[str, ...] = METRICS
    gain: Gain = "linear"
    first_stage: str | None = None
    weight: float = 1.0
    every: int = 0
    limit: int | None = None

    reads = "candidates"

    def __post_init__(self) -> None:
        check(self.metrics)
        if getattr(self.data, "reads", "pairs") != self.reads:
            raise ValueError("data must be queries with candidates, as `candidates` reads them, not pairs")
        if not isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")
        for name, least in (("every", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")

    def __call__(self, model: Scorer, limits: Limits) -> list[EvalRow]:
        """The reranker's row comes last, after those of `DATASET/first_stage` and `DATASET/fused`, if any.

        Chance is the mean over random orders of the candidates. `ece` takes scores for log-odds of a right
        candidate. Raises DataError.
        """
        asked = Asked(self.data.build(limits), self.first_stage, self.limit)
        run, first = asked.scored(model, limits), asked.first
        runs: dict[str, Run] = {self.dataset: run}
        if self.first_stage is not None:
            fused = {q: {d: own + self.weight * run[q][d] for d, own in first[q].items()} for q in first}
            runs = {f"{self.dataset}/first_stage": first, f"{self.dataset}/fused": fused, **runs}
        rows = [row(name, each, asked.qrels, self.metrics, self.gain) for name, each in runs.items()]
        *others, last = rows[:1] + [self._beside(each, rows[0]) for each in rows[1:]]
        labelled = [(score, asked.qrels[q][d] > 0) for q, own in run.items() for d, score in own.items()]
        scores, right = map(torch.tensor, zip(*labelled, strict=True))
        return [
            *others,
            replace(
                last,
                metrics={**last.metrics, "ece": calibration_error(scores, right)},
                exhibits={"rows": asked.account(), "noted": asked.noted, **last.exhibits},
            ),
        ]

    def _beside(self, own: EvalRow, first: EvalRow) -> EvalRow:
        """With its differences to the first stage: of the first metric as metrics, of all as exhibits."""
        each, other = (of.exhibits["queries"] for of in (own, first))
        found = {name: paired(each[name], other[name]) for name in first.metrics if name in other}
        head = label(self.metrics[0], self.gain)
        told = {f"{head}_over_first_stage_{part}": value for part, value in found[head].items()}
        return replace(
            own, metrics={**own.metrics, **told}, exhibits={**own.exhibits, "over_first_stage": found}
        )
