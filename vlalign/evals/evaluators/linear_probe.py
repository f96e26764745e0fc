"""Logistic regression on frozen image embeddings."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Any

import torch
from torch import Tensor

from vlalign.evals.metrics.classification import accuracies, by_shots, check_shots, majority, missed
from vlalign.evals.metrics.ranks import count
from vlalign.evals.prompts import places
from vlalign.evals.reading import read_pictures
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import Embedder, EvalRow, SourceSpec
from vlalign.types import DataError, Limits

Labelled = tuple[Tensor, list[str]]  # features [N, D] and a label of each row


@EVALUATORS.register("linear_probe")
@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """Accuracy of a linear classifier of the field `label`, fitted to `data`, measured on `test`.

    Without `test`, a `holdout` share of each class of `data` is measured on, drawn by `seed`; a class of one
    row is only learnt. A class of `test` that was not learnt is always missed. Features are standardised; `C`
    is scikit-learn's inverse strength of the L2 penalty. `shots`: two numbers of fitted rows that part
    classes into few, medium and many, whose recall is then told apart.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    label: str = "label"
    test: Annotated[SourceSpec, SOURCES] | None = None
    holdout: float = 0.2
    seed: int = 0
    C: float = 0.1
    iterations: int = 1000
    shots: tuple[int, int] | None = None
    every: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout must be between 0 and 1, got {self.holdout}")
        if not (isfinite(self.C) and self.C > 0):
            raise ValueError(f"C must be > 0 and finite, got {self.C}")
        if self.shots is not None:
            check_shots(self.shots)
        for name, least in (("iterations", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def __call__(self, model: Embedder, limits: Limits) -> list[EvalRow]:
        """One row; chance is that of always naming the most frequent classes of the fitted rows."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        (features, learnt), (tested, asked), exhibits = self._sets(model, limits)
        if len(set(learnt)) < 2:
            raise DataError(f"field '{self.label}' has one value, '{learnt[0]}'; a probe needs two classes")
        names = sorted({*learnt, *asked})
        right, wanted = places(learnt, names), places(asked, names)
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=self.C, max_iter=self.iterations))
        probe.fit(features.double().numpy(), right.numpy())  # far outliers overflow in float32
        known = torch.from_numpy(probe.decision_function(tested.double().numpy()))
        if known.ndim == 1:  # of two classes, the second's against the first
            known = torch.stack([torch.zeros_like(known), known], dim=1)
        lowest = (known.min() - known.abs().max() - 1).item()  # what was never learnt comes last
        scores = torch.full((len(tested), len(names)), lowest, dtype=torch.float64)
        scores[:, torch.from_numpy(probe.classes_)] = known
        rows = torch.bincount(right, minlength=len(names))
        ranks = missed(count(scores, wanted[:, None] == torch.arange(len(names))), rows[wanted] == 0)
        groups = by_shots(rows, self.shots) if self.shots else {}
        return [
            EvalRow(
                dataset=self.dataset,
                task="linear_probe",
                metrics=accuracies(ranks, wanted, len(names), groups),
                chance=majority(wanted, right, len(names), groups),
                exhibits=exhibits,
            )
        ]

    def _sets(self, model: Embedder, limits: Limits) -> tuple[Labelled, Labelled, dict[str, Any]]:
        """What is fitted, what is measured, and the accounts of their rows."""
        rows = read_pictures(model, self.data.build(limits))
        features, labels = rows.features, rows.field(self.label)
        if self.test is not None:
            test = read_pictures(model, self.test.build(limits))
            exhibits = {"rows": rows.account(), "test_rows": test.account()}
            return (features, labels), (test.features, test.field(self.label)), exhibits
        held = stratified(labels, self.holdout, self.seed)
        if not any(held):
            raise DataError(f"no class of field '{self.label}' has the two rows that a holdout needs")
        fitted, tested = (
            torch.tensor([h == side for h in held]).nonzero().flatten() for side in (False, True)
        )
        return (
            (features[fitted], [labels[row] for row in fitted]),
            (features[tested], [labels[row] for row in tested]),
            {"rows": rows.account()},
        )


def stratified(labels: Sequence[str], share: float, seed: int) -> list[bool]:
    """Which rows are held out: `share` of each class, at least one where it has two, never all."""
    draw = random.Random(seed)
    held = [False] * len(labels)
    groups: dict[str, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        groups[label].append(row)
    for _, rows in sorted(groups.items()):
        for row in draw.sample(rows, min(max(round(share * len(rows)), 1), len(rows) - 1)):
            held[row] = True
    return held
