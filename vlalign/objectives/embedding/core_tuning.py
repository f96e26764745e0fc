"""Core-tuning, Zhang et al. 2021, https://arxiv.org/abs/2102.06605: contrast-regularised fine-tuning."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.blend import beta, blend
from vlalign.ops.contrast import log_probabilities, mean_over
from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings

FARTHEST = 0.8  # the least share of the negative in a semi-hard negative


@EMBEDDING_OBJECTIVES.register("core_tuning")
@dataclass(frozen=True, kw_only=True)
class CoreTuning:
    """Cross-entropy of mixed queries, plus `eta` times a focal supervised contrast with mixed hard pairs.

    Keys with a query's label `field` are its positives. The contrast, -(1 - p)^gamma log p, their mean, is
    over cosines / `temperature` of all keys and two rows that only this query sees: a hard positive, mixed
    from its least similar positive and its most similar negative, and a semi-hard negative, mixed from itself
    and a random negative. Shares are drawn from Beta(alpha, alpha), the negative's at least 0.8.

    The classifier is ours: where the paper learns one over classes, the batch's own keys are it here, by the
    model's logits, as in zero-shot classification. Each query is mixed with another at random, and so are
    their targets, spread evenly over their positives. Released code takes for the hardest positive a masked
    entry, and for negatives any rows; here they are what the paper states. Holds the whole table of cosines.
    """

    field: str = "concept"
    eta: float = 0.1
    temperature: float = 0.07
    gamma: float = 1.0
    alpha: int = 1

    reads_scale = True

    def __post_init__(self) -> None:
        for name in ("eta", "gamma"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")
        if self.alpha < 1:
            raise ValueError(f"alpha must be >= 1, got {self.alpha}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of rows."""
        return (self.field,)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        query, key = wide(features.query), wide(features.key)
        label = [context.batch[side][self.field] for side in ("query_fields", "key_fields")]
        same = label[0][:, None] == label[1]
        generator = context.generator()
        losses = self._classified(query, key, same, features, generator)
        return losses + self.eta * self._contrasted(query, key, same, generator)

    def _classified(
        self, query: Tensor, key: Tensor, same: Tensor, features: Embeddings, generator: torch.Generator
    ) -> Tensor:
        """Cross-entropy [N] of mixed queries with mixed targets."""
        rows = len(query)
        other = torch.randperm(rows, generator=generator).to(query.device)
        share = beta((rows,), self.alpha, self.alpha, generator).to(query)
        scores = features.scale.to(query) * blend(query, query[other], share) @ key.T
        log_p = log_probabilities(scores, torch.ones_like(same))
        return -(share * mean_over(log_p, same) + (1 - share) * mean_over(log_p, same[other]))

    def _contrasted(self, query: Tensor, key: Tensor, same: Tensor, generator: torch.Generator) -> Tensor:
        """The focal contrast [N]; a row without positives or without negatives has no mixtures."""
        cosine = query @ key.T
        positive = cosine.masked_fill(~same, torch.inf).argmin(1)
        negative = cosine.masked_fill(same, -torch.inf).argmax(1)
        lot = torch.rand(same.shape, generator=generator).to(query.device)
        random = lot.masked_fill(same, -1).argmax(1)
        shares = beta((2, len(query)), self.alpha, self.alpha, generator)
        hard = blend(key[positive], key[negative], shares[0])
        semi = blend(key[random], query, shares[1].clamp(min=FARTHEST))
        mixed = (query[:, None] * torch.stack([hard, semi], 1)).sum(-1)
        some = same.any(1, keepdim=True) & ~same.all(1, keepdim=True)
        counted = torch.cat([torch.ones_like(same), some, some], 1)
        log_p = log_probabilities(torch.cat([cosine, mixed], 1) / self.temperature, counted)
        # A certain pair would have an infinite slope for gamma < 1.
        miss = (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).eps)
        return mean_over(-(miss**self.gamma) * log_p, torch.cat([same, some, torch.zeros_like(some)], 1))
