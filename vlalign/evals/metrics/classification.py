"""Accuracy of classification. A class is a key, so ties are judged as in retrieval.

`groups` are sets of classes, bool [C] by name, over which the mean recall is told as well.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from vlalign.evals.metrics.ranks import Ranks, hits, recall

FAR = 1 << 32  # more keys above than any first k


def per_class_recall(right: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Of each class: the mean [C] of `right` [N] over its rows, NaN where it has none, and its rows [C]."""
    support = torch.bincount(labels, minlength=classes)
    return torch.bincount(labels, weights=right.double(), minlength=classes) / support, support


def accuracies(
    ranks: Ranks, labels: Tensor, classes: int, groups: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """`acc1`, `acc5` and `mean_per_class_recall` (of classes that have rows) of ranks [N] among classes."""
    told = {"acc1": recall(ranks, 1), "acc5": recall(ranks, 5)}
    return told | mean_recalls(hits(ranks, 1), labels, classes, groups)


def mean_recalls(
    right: Tensor, labels: Tensor, classes: int, groups: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """`mean_per_class_recall` of `right` [N], and `..._NAME` of each group that has classes with rows."""
    recalls, support = per_class_recall(right, labels, classes)
    every = {"": torch.ones_like(support, dtype=torch.bool)}
    every |= {f"_{name}": group for name, group in (groups or {}).items()}
    held = {name: recalls[group & (support > 0)] for name, group in every.items()}
    return {f"mean_per_class_recall{name}": part.mean().item() for name, part in held.items() if len(part)}


def missed(ranks: Ranks, lost: Tensor) -> Ranks:
    """The ranks, but those of `lost`, bool [Q], below any first k."""
    return ranks._replace(above=ranks.above.masked_fill(lost, FAR))


def check_shots(bounds: tuple[int, int]) -> None:
    """Raises ValueError for bounds of `by_shots` that are none."""
    if not 1 <= bounds[0] <= bounds[1]:
        raise ValueError(f"shots must be two numbers of rows, 1 <= lower <= upper, got {list(bounds)}")


def by_shots(shots: Tensor, bounds: tuple[int, int]) -> dict[str, Tensor]:
    """Groups of classes by the rows [C] that they were learnt from: few, medium and many.

    `few` have less than the lower bound, `many` more than the upper: Liu et al. 2019,
    https://arxiv.org/abs/1904.05160, with 20 and 100.
    """
    few, many = shots < bounds[0], shots > bounds[1]
    return {"many": many, "medium": ~few & ~many, "few": few}


def majority(
    labels: Tensor, known: Tensor, classes: int, groups: Mapping[str, Tensor] | None = None
) -> dict[str, float]:
    """The level, for labels [N], of always naming the classes that are most frequent in `known` [M].

    Equally frequent ones stand in a random order; those that are not there are never named. `acc1_uniform`
    and `acc5_uniform` are the levels of naming classes at random.
    """
    rows = torch.bincount(known, minlength=classes)
    _, level, alike = torch.unique(rows, return_inverse=True, return_counts=True)
    above = classes - alike.cumsum(0)  # of each level, the classes that have more rows
    ranks = missed(Ranks(above[level], alike[level], torch.ones_like(rows)), rows == 0)
    return {
        **accuracies(Ranks(*(column[labels] for column in ranks)), labels, classes, groups),
        "acc1_uniform": 1 / classes,
        "acc5_uniform": min(5 / classes, 1.0),
    }
