"""Contrastive attraction and repulsion, Zheng et al. 2021, https://arxiv.org/abs/2105.03746, section 3."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.reductions import NEGATIVES, POSITIVES, Reduction
from vlalign.ops.tilted import Tilted
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("cacr")
@dataclass(frozen=True, kw_only=True)
class CACR:
    """Positives compete among positives, negatives among negatives, by squared distance c = 2 - 2 cosine.

    `alpha` times the mean c of the positives, weighted by the softmax of t_plus * c, so that far ones pull
    harder; minus `beta` times that of the negatives, weighted by the softmax of -t_minus * c, so that near
    ones push harder. The loss may be negative. With one positive the attraction is its c.

    `detached`: the weights have no gradient. The released code is two methods under one name: with
    gradient in its small experiments, as here, and without it on ImageNet.
    """

    t_plus: float = 1.0
    t_minus: float = 0.9
    alpha: float = 1.0
    beta: float = 1.0
    detached: bool = False

    def __post_init__(self) -> None:
        for name in ("t_plus", "t_minus"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("alpha", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    @property
    def reductions(self) -> dict[str, Reduction]:
        """Means of -2 t_plus * cosine and of 2 t_minus * cosine, each under its own softmax."""
        return {
            "attraction": Tilted(over=POSITIVES, temperature=-0.5 / self.t_plus, detached=self.detached),
            "repulsion": Tilted(over=NEGATIVES, temperature=0.5 / self.t_minus, detached=self.detached),
        }

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        attraction = 2 + rows["attraction"] / self.t_plus
        repulsion = 2 - rows["repulsion"] / self.t_minus
        return self.alpha * attraction - self.beta * repulsion
