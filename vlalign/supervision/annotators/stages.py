"""Pseudo-labels of stages: MCL, Zhang et al. 2024, https://arxiv.org/abs/2402.11816, section 3."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlalign.registry import ANNOTATORS
from vlalign.specs import Frozen
from vlalign.supervision.clustering import kmeans


@ANNOTATORS.register("stages")
@dataclass(frozen=True, kw_only=True)
class Stages:
    """What stages so far have in common: Y_s = sum_r y_r k^(s - r), y_r the k-means of stage r's features.

    Rows of one label are alike to every stage, so that another one, whose batches are of one label each, has
    to learn of something else. `models`: those of the stages from the first on, folders or Hub ids; None
    among them is this run's own locked tower. The released code reads the newest stage's clusters for every
    stage.
    """

    k: int = 10
    side: Literal["image", "text"] = "image"
    models: tuple[str | None, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}")
        if not self.models:
            raise ValueError("models is empty; name the model of at least one stage")
        if self.k ** len(self.models) >= 2**63:
            raise ValueError(f"k must be smaller for {len(self.models)} stages of labels, got {self.k}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and below 2**32, got {self.seed}")

    def __call__(self, rows: Frozen) -> Tensor:
        """Int64 [N]. Raises RecipeError when there are fewer rows than clusters."""
        labels = torch.zeros(len(rows), dtype=torch.int64)
        for model in self.models:
            labels = labels * self.k + kmeans(rows.features(self.side, model), self.k, self.seed)
        return labels
