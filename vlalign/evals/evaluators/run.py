"""A run that is on disk already, as TREC's tools and late-interaction models write it, against judgements."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.evals.ranking import METRICS, Gain, check, row
from vlalign.evals.runs import read_qrels, read_run
from vlalign.registry import EVALUATORS
from vlalign.specs import EvalRow
from vlalign.types import Limits


@EVALUATORS.register("run")
@dataclass(frozen=True, kw_only=True)
class RunFile:
    """`metrics` of the file `run` (`query Q0 document rank score tag`); the model is not asked.

    `qrels`: lines `query 0 document grade`, relevant above 0, or a table of BEIR's. A query that the run
    leaves out counts 0, one without judgements does not count. `metrics` and `gain` are as in reranking, and
    ranks follow from scores.
    """

    run: str
    qrels: str
    dataset: str
    metrics: tuple[str, ...] = METRICS
    gain: Gain = "linear"
    every: int = 0

    reads = "anything"  # for it asks no model

    def __post_init__(self) -> None:
        check(self.metrics)
        if self.every < 0:
            raise ValueError(f"every must be >= 0, got {self.every}")

    def __call__(self, model: Any, limits: Limits) -> list[EvalRow]:
        """One row; chance is the mean over random orders of what the run retrieved. Raises DataError."""
        run, qrels = read_run(Path(self.run).expanduser()), read_qrels(Path(self.qrels).expanduser())
        strange = {
            "queries_without_run": len(qrels.keys() - run.keys()),
            "queries_without_judgements": len(run.keys() - qrels.keys()),
        }
        return [row(self.dataset, run, qrels, self.metrics, self.gain, strange)]
