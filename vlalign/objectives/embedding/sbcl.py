"""Subclass-balancing contrastive learning, Hou et al. 2023, https://arxiv.org/abs/2306.15925."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.contrast import log_probabilities, mean_over
from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Batch, Context, Embeddings


@EMBEDDING_OBJECTIVES.register("sbcl")
@dataclass(frozen=True, kw_only=True)
class SBCL:
    """Contrast at two levels: within a subclass, and within a class but beyond the subclass.

    Image and text are the two views of a row, and each view is an anchor among the other's rows. Positives of
    the first term are the rows of the anchor's subclass. Those of the second, times `class_weight`, are its
    own row and those of its class in other subclasses; no other row of its subclass is in the denominator.

    `label` and `subclass` name label fields, and `spread` the field of numbers that multiply `temperature` in
    an anchor's second term: exp(phi / mean phi) for phi the spread of its class, and 1 for a class that was
    not split. (Released code has phi / mean phi there, and weighs the second term by about 0.18.) The paper
    clusters anew while it trains, after some epochs of the plain supervised contrast; annotations are made
    once. Holds the whole table of cosines.
    """

    label: str = "concept"
    subclass: str = "subclass"
    spread: str = "spread"
    temperature: float = 0.1
    class_weight: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if not self.class_weight >= 0:
            raise ValueError(f"class_weight must be >= 0, got {self.class_weight}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of rows."""
        return (self.label, self.subclass, self.spread)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N], the mean of a row's two views."""
        query, key = wide(features.query), wide(features.key)
        cosine, rows = query @ key.T, len(query)
        queries, keys = context.batch["query_fields"], context.batch["key_fields"]
        own = {name: keys[name][:rows] for name in self.fields}
        there, back = self._losses(cosine, queries, keys), self._losses(cosine[:, :rows].T, own, queries)
        return (there + back) / 2

    def _losses(self, cosine: Tensor, row: Batch, column: Batch) -> Tensor:
        """Of anchors [N] among the other view's rows [N, M], their own at the same place."""
        own = torch.eye(*cosine.shape, dtype=torch.bool, device=cosine.device)
        label, subclass = (row[name][:, None] == column[name] for name in (self.label, self.subclass))
        alike = label & subclass
        score = cosine / self.temperature
        near = mean_over(log_probabilities(score, torch.ones_like(own)), own | alike)
        score = score / row[self.spread][:, None].to(score)
        far = mean_over(log_probabilities(score, own | ~alike), own | (label & ~alike))
        return -(near + self.class_weight * far)
