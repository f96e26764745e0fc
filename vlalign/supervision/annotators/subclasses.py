"""Subclasses of large classes: SBCL, Hou et al. 2023, https://arxiv.org/abs/2306.15925, section 3.2."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlalign.registry import ANNOTATORS
from vlalign.specs import Frozen
from vlalign.supervision.clustering import balanced, counted, kmeans, splits


@ANNOTATORS.register("subclasses")
@dataclass(frozen=True, kw_only=True)
class Subclasses:
    """Each class of the field `by` as clusters about as large as the smallest class, and at least as 10.

    A class of n rows has max(1, floor(n / M)) subclasses, M = max(smallest, 10), and none shares one with
    another class. `balanced`: sizes within a class differ by one at most; otherwise plain k-means, as the
    released code has it unless told. `model`: a saved one, folder or Hub id; None: this run's own locked
    tower. The paper clusters anew every 10 epochs of the model that learns; here it is done once.
    """

    by: str
    side: Literal["image", "text"] = "image"
    model: str | None = None
    balanced: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and below 2**32, got {self.seed}")

    def __call__(self, rows: Frozen) -> Tensor:
        """Int64 [N], from 0, classes one after another; -1 for rows that cannot be read."""
        features, cluster = rows.features(self.side, self.model), balanced if self.balanced else kmeans
        known = torch.where(features.any(1))[0]
        classes, sizes = counted(rows.field(self.by)[known])
        labels, first = torch.full((len(features),), -1), 0
        members = torch.split(known[classes.argsort(stable=True)], sizes.tolist())
        for own, parts in zip(members, splits(sizes).tolist(), strict=True):
            labels[own] = first + (cluster(features[own], parts, self.seed) if parts > 1 else 0)
            first += parts
        return labels
