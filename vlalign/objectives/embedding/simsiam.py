"""SimSiam, Chen and He 2021, https://arxiv.org/abs/2011.10566, eq. 4; of image and text SiamLIP."""

from dataclasses import dataclass

from torch import Tensor, nn

from vlalign.ops.learned import mispredicted, predictors
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings


@EMBEDDING_OBJECTIVES.register("simsiam")
@dataclass(frozen=True, kw_only=True)
class SimSiam:
    """A predictor on each side says what the other side's embedding is: 2 - 2 cos, without a gradient to it.

    The mean of both ways, from 0 to 4. `width`: of the predictors' one hidden layer. As a companion of a
    contrast, Fini et al. 2023, https://arxiv.org/abs/2305.08675; they have projectors too, here the targets
    are the embeddings themselves.
    """

    width: int = 512

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width must be >= 1, got {self.width}")

    def head(self, dim: int) -> nn.Module:
        """A predictor for each side."""
        return predictors(dim, self.width)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        return mispredicted(self.head, features, features.query, features.key)
