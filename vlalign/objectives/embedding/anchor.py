"""RCAL's regulariser, Zhang et al. 2022, https://arxiv.org/abs/2211.10955: embeddings stay near the first."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings, Side, UserError


@EMBEDDING_OBJECTIVES.register("anchor")
@dataclass(frozen=True, kw_only=True)
class Anchor:
    """The squared distance of an embedding from what a frozen model made of its row, from 0 to 4.

    `side`: the rows that are held, as a rule the pictures. `field` names their frozen unit embeddings: what
    the annotation `features` takes from a saved model as wide as this one, as from the one that training
    starts from, so that the loss begins at 0. Of several captions these are the mean, and it does not.
    """

    field: str = "initial"
    side: Side = "query"

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of rows."""
        return (self.field,)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        rows = len(features.query)
        own, before = getattr(features, self.side), context.batch[f"{self.side}_fields"][self.field]
        if before.shape[1:] != own.shape[1:]:
            raise UserError(
                f"anchor: embeddings have {own.shape[1]} numbers and the field '{self.field}' has "
                f"{before[0].numel()} a row; annotate it from a saved model as wide as this one"
            )
        moved: Tensor = wide(own[:rows]) - before[:rows].to(wide(own))
        return moved.square().sum(1)
