"""How loose a row's class is: SBCL, Hou et al. 2023, https://arxiv.org/abs/2306.15925, section 3.3."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlalign.registry import ANNOTATORS
from vlalign.specs import Frozen
from vlalign.supervision.clustering import counted, splits


@ANNOTATORS.register("spread")
@dataclass(frozen=True, kw_only=True)
class Spread:
    """What multiplies the temperature of a class that has subclasses; 1 for rows of the others.

    The spread of a class of n rows is their mean distance to its centre over log(n + 10), clipped to the 10th
    and 90th percentile of all classes. Over the mean of all classes it is the multiplier if `form` is linear,
    as in the released code, which cools the classes below that mean; the paper's is the exponential of it.
    `model`: a saved one, folder or Hub id; None: this run's own locked tower.
    """

    by: str
    side: Literal["image", "text"] = "image"
    model: str | None = None
    form: Literal["exponential", "linear"] = "exponential"

    def __call__(self, rows: Frozen) -> Tensor:
        """Float32 [N], > 0, equal within a class; 1 for rows that cannot be read."""
        features = rows.features(self.side, self.model)
        known = features.any(1)
        found = torch.ones(len(features))
        found[known] = self._multipliers(features[known], rows.field(self.by)[known])
        return found

    def _multipliers(self, features: Tensor, labels: Tensor) -> Tensor:
        classes, sizes = counted(labels)
        centres = torch.zeros(len(sizes), features.shape[1]).index_add_(0, classes, features)
        distances = (features - (centres / sizes[:, None])[classes]).norm(dim=1)
        means = torch.zeros(len(sizes)).index_add_(0, classes, distances) / sizes
        spread = means / (sizes + 10).log()
        spread = spread.clamp(spread.quantile(0.1), spread.quantile(0.9))
        ratio = spread / spread.mean()
        multiplier = ratio.exp() if self.form == "exponential" else ratio
        split = (splits(sizes) > 1) & (spread > 0)  # classes of equal rows have nothing to soften
        return torch.where(split, multiplier, 1.0)[classes]
