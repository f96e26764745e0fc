"""BYOL, Grill et al. 2020, https://arxiv.org/abs/2006.07733, eq. 2; of image and text BYOLIP."""

from dataclasses import dataclass

from torch import Tensor, nn

from vlalign.ops.learned import mispredicted, predictors
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings


@EMBEDDING_OBJECTIVES.register("byol")
@dataclass(frozen=True, kw_only=True)
class BYOL:
    """A predictor on each side says how the averaged weights embed the other side: 2 - 2 cos.

    The mean of both ways, from 0 to 4. `width`: of the predictors' one hidden layer. As a companion of a
    contrast, Fini et al. 2023, https://arxiv.org/abs/2305.08675; they have projectors too, here the targets
    are the embeddings themselves.
    """

    width: int = 4096

    momentum = True

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}")

    def head(self, dim: int) -> nn.Module:
        """A predictor for each side."""
        return predictors(dim, self.width)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        targets = context.batch["momentum"]
        return mispredicted(self.head, features, targets["query"], targets["key"])
