"""The identity term of CLIP-LIT, Liang et al. 2023, https://arxiv.org/abs/2303.17569, L_id, of embeddings."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings


@EMBEDDING_OBJECTIVES.register("faithful")
@dataclass(frozen=True, kw_only=True)
class Faithful:
    """The squared distance of a query from its key, from 0 to 4; keys get no gradient.

    Of an enhancer these are a picture that was changed, and the same as it was. The paper adds the features
    of four layers below; only embeddings leave a model's forward.
    """

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        query = wide(features.query)
        moved: Tensor = query - features.key[: len(query)].detach().to(query)
        return moved.square().sum(1)
