"""Conditional similarity, Vaze et al. 2023, https://arxiv.org/abs/2306.07969 (GeneCIS)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import fsum
from typing import Annotated, Any

from torch import Tensor

from vlalign.evals.candidates import scored
from vlalign.evals.conditional import PLACES, Apart, recalls
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import EvalRow, SourceSpec
from vlalign.types import BadRow, DataError, Limits, Scorer, UserError

TOGETHER = 256  # pictures that are held at once: of several galleries, whose pictures are often the same


@EVALUATORS.register("genecis")
@dataclass(frozen=True, kw_only=True)
class GeneCIS:
    """R@1, R@2 and R@3: the share of queries, of a picture and a text each, whose one right candidate is
    among so many of their own. Results are called `DATASET/TASK`, and `DATASET` is their mean over tasks.

    `tasks`: by name, queries with galleries, as the source `genecis` reads those of the benchmark. Beside
    them, `picture_R@k` is of the same model shown the queries' pictures alone, `text_R@k` their texts, and
    `sum_R@k` of both scores' sum, as of the sum of a dual encoder's rows. `limit`: the first so many queries.
    """

    dataset: str
    tasks: Mapping[str, Annotated[SourceSpec, SOURCES]]
    every: int = 0
    limit: int | None = None

    reads = "candidates"

    def __post_init__(self) -> None:
        odd = [name for name, each in self.tasks.items() if getattr(each, "reads", "pairs") != self.reads]
        if odd or not self.tasks:
            raise ValueError(f"tasks must be queries with candidates: {odd[0] if odd else 'there is none'}")
        for name, least in (("every", 0), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")

    @property
    def data(self) -> "GeneCIS":
        """What is opened before a run begins that is measured by it."""
        return self

    def build(self, limits: Limits = Limits()) -> None:
        """Open every task. Raises DataError."""
        for each in self.tasks.values():
            each.build(limits)

    def __call__(self, model: Scorer, limits: Limits) -> list[EvalRow]:
        """Rows of tasks, then of their mean. Raises DataError, UserError for a score that is no number."""
        rows = [self._task(name, each.build(limits), model, limits) for name, each in self.tasks.items()]
        metrics, chance = (
            {name: fsum(own[name] for own in each) / len(each) for name in each[0]}
            for each in ([row.metrics for row in rows], [row.chance for row in rows])
        )
        return [*rows, EvalRow(dataset=self.dataset, task="conditional", metrics=metrics, chance=chance)]

    def _task(self, name: str, source: Any, model: Scorer, limits: Limits) -> EvalRow:
        scores, right, bad = list[Tensor](), list[int](), Counter[str]()
        places = range(min(len(source), self.limit or len(source)))
        for _, found in scored(Apart(model), source, places, limits, TOGETHER):
            if isinstance(found, BadRow):
                bad[found.reason] += 1
                continue
            row, own = found
            good = [at for at, label in enumerate(row["numbers"]["label"]) if label > 0]
            if len(good) != 1:
                raise DataError(f"query '{row['id']}' has {len(good)} right candidates; give it one")
            if not own.isfinite().all():
                raise UserError(f"query '{row['id']}': a score is not finite; look at the model's weights")
            scores.append(own)
            right.append(good[0])
        if not scores:
            told = ", ".join(f"{reason}: {count}" for reason, count in bad.items())
            raise DataError(f"{name}: none of the {len(source)} queries could be read ({told})")
        queries = recalls([each.double() for each in scores], right)
        chance = {f"R@{k}": fsum(min(1.0, k / len(each)) for each in scores) / len(scores) for k in PLACES}
        skipped = Counter({reason: len(ids) for reason, ids in source.skipped.items()}) + bad
        account = {"used": len(scores), "skipped": dict(skipped), "converted": {}}
        account["licences"] = [asdict(licence) for licence in source.licences]
        return EvalRow(
            dataset=f"{self.dataset}/{name}",
            task="conditional",
            metrics={name: fsum(own) / len(own) for name, own in queries.items()},
            chance={name: chance[name.rpartition("_")[2]] for name in queries},
            exhibits={"rows": account, "queries": queries},
        )
