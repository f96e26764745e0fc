"""Pseudo-labels: the cluster of a row among frozen features."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlalign.registry import ANNOTATORS
from vlalign.specs import Frozen
from vlalign.supervision.clustering import kmeans


@ANNOTATORS.register("kmeans")
@dataclass(frozen=True, kw_only=True)
class KMeans:
    """Labels from 0 to k - 1. `model`: a saved one, folder or Hub id; None: this run's own locked tower."""

    k: int
    side: Literal["image", "text"]
    model: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and below 2**32, got {self.seed}")

    def __call__(self, rows: Frozen) -> Tensor:
        """Int64 [N]. Raises RecipeError when there are fewer rows than clusters."""
        return kmeans(rows.features(self.side, self.model), self.k, self.seed)
