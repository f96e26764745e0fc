"""Classification by the prompts of class names, no label seen in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from vlalign.evals.metrics.classification import (
    accuracies,
    by_shots,
    check_shots,
    majority,
    per_class_recall,
)
from vlalign.evals.metrics.ranks import hits, rank
from vlalign.evals.prompts import class_names, classifier, places, rows_of, templates
from vlalign.evals.reading import class_counts, read_pictures
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import Embedder, EvalRow, SourceSpec
from vlalign.types import DataError, Limits


@EVALUATORS.register("zero_shot")
@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """`acc1`, `acc5` and `mean_per_class_recall` beside the majority's.

    `label`: the field of a row that holds its class, as a name or a number from 0. `classes`: `imagenet`, a
    file of names, or a list; by default the folder's, else the distinct labels of the data. `templates`:
    `imagenet`, `simple`, a file, or a list; by default the folder's, else `simple`. `folder`: a data set's,
    with `classnames.txt` and `zeroshot_classification_templates.txt`, as CLIP_benchmark lays it out.
    `counts`: what the model was trained on, by names or numbers as well; then recall is told apart for
    classes of which it holds less than the first of `shots` rows (few), more than the second (many), or
    between (medium).
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    label: str = "label"
    classes: str | tuple[str, ...] | None = None
    templates: str | tuple[str, ...] | None = None
    folder: str | None = None
    counts: Annotated[SourceSpec, SOURCES] | None = None
    shots: tuple[int, int] = (20, 100)
    every: int = 0
    block: int = 512

    def __post_init__(self) -> None:
        for name, least in (("every", 0), ("block", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("classes", "templates"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must have at least one entry, got none")
        check_shots(self.shots)

    def __call__(self, model: Embedder, limits: Limits) -> list[EvalRow]:
        """One row, with a table of classes for the report."""
        chosen = self._chosen(self.classes, "classnames.txt")
        wording = templates(self._chosen(self.templates, "zeroshot_classification_templates.txt") or "simple")
        source = self.data.build(limits)
        learnt = None if self.counts is None else class_counts(self.counts.build(limits), self.label)
        names = None if chosen is None else class_names(chosen)
        pictures = read_pictures(model, source)
        labels = pictures.field(self.label)
        names = sorted(set(labels)) if names is None else names
        right = places(labels, names)
        ranks = rank(
            pictures.features, classifier(model, names, wording), right, torch.arange(len(names)), self.block
        )
        recalls, support = per_class_recall(hits(ranks, 1), right, len(names))
        groups = {} if learnt is None else by_shots(self._shots(learnt, names), self.shots)
        table = [
            {"class": name, "rows": rows, "recall": recall}
            for name, rows, recall in zip(names, support.tolist(), recalls.tolist(), strict=True)
            if rows
        ]
        return [
            EvalRow(
                dataset=self.dataset,
                task="zeroshot_classification",
                metrics=accuracies(ranks, right, len(names), groups),
                chance=majority(right, right, len(names), groups),
                exhibits={"rows": pictures.account(), "classes": table, "templates": wording},
            )
        ]

    def _shots(self, learnt: Mapping[str, int], names: Sequence[str]) -> Tensor:
        try:
            return rows_of(learnt, names)
        except DataError as error:
            raise DataError(f"counts: {error}; take the data that the model was trained on") from error

    def _chosen(self, own: str | tuple[str, ...] | None, file: str) -> str | tuple[str, ...] | None:
        return str(Path(self.folder) / file) if own is None and self.folder is not None else own
