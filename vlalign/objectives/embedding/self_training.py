"""S3A's instance term, Zhang et al. 2023, https://arxiv.org/abs/2308.12960: names of which a teacher is sure.

The paper's softmax is over the names of all clusters, here it is over those in the batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings


@EMBEDDING_OBJECTIVES.register("self_training")
@dataclass(frozen=True, kw_only=True)
class SelfTraining:
    """Cross-entropy of a picture with the one name that the averaged weights find likeliest for it.

    Names are the batch's keys, of those with an equal `field` the first. The averaged weights are the
    teacher: softmax of its own cosines, by the model's multiplier of now. Where its name is no likelier than
    `threshold`, the loss is 0 and counts as such in the mean; from 1 on that is everywhere. The teacher sees
    the picture that the model sees, unless `data.augment.teacher` says otherwise.
    """

    field: str = "caption"
    threshold: float = 0.5

    momentum = True
    reads_scale = True

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise ValueError(f"threshold must be >= 0, got {self.threshold}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of rows."""
        return (self.field,)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        names, teacher = firsts(context.batch["key_fields"][self.field]), context.batch["momentum"]
        query, key = wide(features.query), wide(features.key)
        scale = features.scale.to(query)
        with torch.no_grad():
            logits = scale * teacher["query"].to(query) @ teacher["key"].to(query)[names].T
            sure, name = logits.softmax(1).max(1)
        losses = cross_entropy(scale * query @ key[names].T, name, reduction="none")
        return torch.where(sure > self.threshold, losses, 0)


def firsts(labels: Tensor) -> Tensor:
    """Where each label of [M] stands first, int64 [V], by label."""
    ordered, order = labels.sort(stable=True)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    return order[new]
