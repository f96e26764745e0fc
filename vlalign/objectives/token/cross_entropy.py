"""Cross-entropy of each token; smoothing by Szegedy et al. 2016, https://arxiv.org/abs/1512.00567, sec. 7."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.registry import TOKEN_OBJECTIVES
from vlalign.types import TokenLogits


@TOKEN_OBJECTIVES.register("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Log-sum-exp over the vocabulary less the logit of the token that stands there.

    `smoothing`: the share of the target that is spread evenly over the whole vocabulary.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be >= 0 and < 1, got {self.smoothing}")

    def __call__(self, features: TokenLogits) -> Tensor:
        """Losses [N]."""
        logits = wide(features.logits)
        wanted = logits.gather(1, features.labels[:, None])[:, 0]
        if self.smoothing:
            wanted = (1 - self.smoothing) * wanted + self.smoothing * logits.mean(1)
        return logits.logsumexp(1) - wanted
