"""Many sets of queries with candidates, a folder each: every one by itself, and means over sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path
from typing import Annotated, Any

from vlalign.evals.ranking import METRICS, Gain, label
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import EvalRow, SourceSpec
from vlalign.types import DataError, Limits, Scorer


@EVALUATORS.register("benchmark")
@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """`reranking` on each set of `groups`, then means of `metrics`: of every group, last of all sets.

    A set counts once in a mean, however many queries it has, and may be in several groups. Results are called
    `DATASET/SET`, `DATASET/GROUP` and `DATASET`. MMEB's hit@1 is Success@1, its ndcg_linear@5 is nDCG@5.

    `sets`: the source of a set, such as `mmeb_eval` or `mrb`; its `path` is the folder that all of them lie
    in under their names. The other fields are as in `reranking`; `limit` is of each set.
    """

    sets: Annotated[SourceSpec, SOURCES]
    dataset: str
    groups: Mapping[str, tuple[str, ...]]
    metrics: tuple[str, ...] = METRICS
    gain: Gain = "linear"
    first_stage: str | None = None
    weight: float = 1.0
    every: int = 0
    limit: int | None = None

    reads = "candidates"

    def __post_init__(self) -> None:
        if getattr(self.sets, "reads", "pairs") != self.reads or not hasattr(self.sets, "path"):
            raise ValueError("sets must be read from a folder each, as `mmeb_eval` and `mrb` read theirs")
        for group, names in (self.groups or {"": ()}).items():
            if not names or len(set(names)) < len(names):
                raise ValueError(f"groups must have sets, each once in a group: {group or 'there is none'}")
        if both := [group for group in self.groups if group in self._names()]:
            raise ValueError(f"groups must not be called as a set is, and '{both[0]}' is both")
        self._each()  # which refuses what else cannot be measured

    @property
    def data(self) -> "Benchmark":
        """What is opened before a run begins that is measured by it."""
        return self

    def build(self, limits: Limits = Limits()) -> None:
        """Open every set. Raises DataError."""
        self._check_there()
        for each in self._each().values():
            each.data.build(limits)

    def __call__(self, model: Scorer, limits: Limits) -> list[EvalRow]:
        """Rows of sets, then of means, of the first stage and both together too where there is one.

        Raises DataError before anything is measured where a set is not there.
        """
        self._check_there()
        found = {name: each(model, limits) for name, each in self._each().items()}
        rows = [row for own in found.values() for row in own]
        for mean, names in [*((f"/{group}", names) for group, names in self.groups.items()), ("", [*found])]:
            for several in zip(*(found[name] for name in names), strict=True):
                kind = several[0].dataset.removeprefix(f"{self.dataset}/{names[0]}")
                rows.append(self._mean(f"{self.dataset}{mean}{kind}", names, several))
        return rows

    def _mean(self, dataset: str, names: Sequence[str], rows: Sequence[EvalRow]) -> EvalRow:
        asked = [label(name, self.gain) for name in self.metrics]
        return EvalRow(
            dataset=dataset,
            task="reranking",
            metrics={name: fsum(row.metrics[name] for row in rows) / len(rows) for name in asked},
            chance={name: fsum(row.chance[name] for row in rows) / len(rows) for name in asked},
            exhibits={"sets": list(names)},
        )

    def _check_there(self) -> None:
        source: Any = self.sets
        root = Path(source.path).expanduser()
        if missing := [name for name in self._names() if not (root / name).exists()]:
            raise DataError(
                f"{root} has no {', '.join(missing)}; put the sets there, or take them out of groups, which "
                "makes another mean"
            )

    def _names(self) -> list[str]:
        """Of all sets, each once."""
        return list(dict.fromkeys(name for names in self.groups.values() for name in names))

    def _each(self) -> dict[str, Any]:
        """The evaluator of each set."""
        source: Any = self.sets
        fields = ("metrics", "gain", "first_stage", "weight", "every", "limit")
        told = {name: getattr(self, name) for name in fields}
        return {
            name: EVALUATORS.get("reranking")(
                data=replace(source, path=str(Path(source.path) / name)),
                dataset=f"{self.dataset}/{name}",
                **told,
            )
            for name in self._names()
        }
