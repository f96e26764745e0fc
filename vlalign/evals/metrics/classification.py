"""Accuracy of classification. A class is a key, so ties are judged as in retrieval."""

import torch
from torch import Tensor

from vlalign.evals.metrics.ranks import Ranks, hits, recall


def per_class_recall(right: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Of each class: the mean [C] of `right` [N] over its rows, NaN where it has none, and its rows [C]."""
    support = torch.bincount(labels, minlength=classes)
    return torch.bincount(labels, weights=right.double(), minlength=classes) / support, support


def accuracies(ranks: Ranks, labels: Tensor, classes: int) -> dict[str, float]:
    """`acc1`, `acc5` and `mean_per_class_recall` (of classes that have rows) of ranks [N] among classes."""
    recalls, support = per_class_recall(hits(ranks, 1), labels, classes)
    return {
        "acc1": recall(ranks, 1),
        "acc5": recall(ranks, 5),
        "mean_per_class_recall": recalls[support > 0].mean().item(),
    }


def majority(labels: Tensor, known: Tensor, classes: int) -> dict[str, float]:
    """The level, for labels [N], of always naming the classes that are most frequent in `known` [M].

    `acc1_uniform` and `acc5_uniform` are those of naming classes at random.
    """
    order = torch.bincount(known, minlength=classes).argsort(descending=True, stable=True)
    return {
        "acc1": torch.isin(labels, order[:1]).double().mean().item(),
        "acc5": torch.isin(labels, order[:5]).double().mean().item(),
        "mean_per_class_recall": 1 / len(set(labels.tolist())),
        "acc1_uniform": 1 / classes,
        "acc5_uniform": min(5 / classes, 1.0),
    }
