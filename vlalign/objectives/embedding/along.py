"""Guidance along a direction, Gaintseva et al. 2024, https://arxiv.org/abs/2404.01889 (RAVE), L_res."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vlalign.ops.direction import Direction, read, score
from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings, Side, UserError


@EMBEDDING_OBJECTIVES.register("along")
@dataclass(frozen=True, kw_only=True)
class Along:
    """How far rows still are from the positive pole, or how likely they are negative ones.

    `direction`: the file `direction.safetensors` of `vlalign direction`, of the model whose embeddings these
    are, of which the width alone is checked. Of `fit: residual`, the squared difference of a row's score and
    the target, beyond which it is pulled back. Of `pair` and `prompt`, the probability of the negative pole,
    Liang et al. 2023, https://arxiv.org/abs/2303.17569 (CLIP-LIT), L_clip, which falls for ever. `side`: the
    rows that are moved, as a rule the pictures.
    """

    direction: str
    side: Side = "query"

    @cached_property
    def _found(self) -> Direction:
        return read(self.direction)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]. Raises UserError."""
        rows = wide(getattr(features, self.side)[: len(features.query)])
        vector, target, steepness, _ = self._found
        if rows.shape[1:] != vector.shape:
            raise UserError(
                f"along: embeddings have {rows.shape[1]} numbers and {self.direction} has {len(vector)}; "
                "name a direction that was fitted with this model"
            )
        found = score(rows, vector)
        return (found - target).square() if steepness is None else torch.sigmoid(-steepness * found)
