"""Tokens by how much they matter to a language model: RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.quantization import token_weights
from vlalign.registry import TOKEN_WEIGHTERS
from vlalign.types import Context


@TOKEN_WEIGHTERS.register("importance")
@dataclass(frozen=True, kw_only=True)
class ImportanceWeights:
    """Scores of a caption's tokens spread from `low` to `high`, raised to `power`, of mean one.

    The paper weighs what a quantiser reads by them, with these bounds where nothing is rotated; that a loss
    is weighed so is ours. Equal scores leave every token one.
    """

    low: float = 0.1
    high: float = 1.0
    power: float = 1.0

    fields = ("importance",)

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < float("inf"):
            raise ValueError(f"low and high must be 0 <= low < high, got {self.low} and {self.high}")
        if not 0 < self.power < float("inf"):
            raise ValueError(f"power must be > 0 and finite, got {self.power}")

    @torch.no_grad()
    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [N]."""
        counts = context.batch["pairs"]["row"].bincount().tolist()
        scores = context.batch["token_fields"]["importance"].split(counts)
        told = [token_weights(each, self.low, self.high, self.power) for each in scores if len(each)]
        return torch.cat([losses.new_empty(0), *told]).to(losses.dtype)  # a process may have no row left
