"""PRIOR, tokens that need the picture, Chen et al. 2025, https://arxiv.org/abs/2505.08971: (1 - r)^alpha."""

from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from vlalign.registry import TOKEN_WEIGHTERS
from vlalign.types import Batch, Context


@TOKEN_WEIGHTERS.register("prior")
@dataclass(frozen=True, kw_only=True)
class Prior:
    """r is the probability of a token after those before it, by a reference that sees no picture.

    Weights average one over the tokens of a caption, and are equal where the reference is sure of all. With
    `alpha` 0 every token counts once. `shuffled`: the control that knows nothing of tokens, the same weights
    dealt among those of each caption anew at every step. What a reference cannot guess need not be in the
    picture: names and misspellings gain as well. The paper's code was not released; this is its formula.
    """

    alpha: float = 1.0
    shuffled: bool = False

    fields = ("log_probability",)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha must be >= 0 and finite, got {self.alpha}")

    @torch.no_grad()
    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [N]."""
        row, tokens = context.batch["pairs"]["row"], context.batch["pairs"]["row"].bincount()
        miss = -torch.expm1(context.batch["token_fields"]["log_probability"].clamp(max=0))
        zeros = miss.new_zeros(len(tokens))
        largest = zeros.scatter_reduce(0, row, miss, "amax")[row]
        weights = torch.where(largest > 0, miss / largest, 1) ** self.alpha  # none can be too small for all
        weights *= (tokens / zeros.index_add(0, row, weights))[row]
        return _dealt(weights, context.batch, context.step) if self.shuffled else weights


def _dealt(weights: Tensor, batch: Batch, step: int) -> Tensor:
    """Those of each caption in an order that its tokens and the step decide."""
    labels, row, dealt = batch["pairs"]["labels"], batch["pairs"]["row"], weights.clone()
    for each in row.unique():
        places = (row == each).nonzero()[:, 0]
        told = blake2b(f"{step} {labels[places].tolist()}".encode(), digest_size=7)
        random = torch.Generator().manual_seed(int(told.hexdigest(), 16))
        order = torch.randperm(len(places), generator=random).to(places.device)
        dealt[places] = weights[places[order]]
    return dealt
