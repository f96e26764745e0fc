"""AdamW, Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101, algorithm 2."""

import re
from dataclasses import dataclass
from math import isfinite

import torch
from torch import nn

from vlalign.registry import OPTIMIZERS
from vlalign.types import UserError

# Offsets with two axes or more: special tokens, learned positions, relative position tables, token types.
OFFSET = re.compile(
    r"(^|[._])((cls|class|reg|register|dist|distillation|mask)_(tokens?|embedding)"
    r"|pos_embed|position|relative_attention_bias|token_type_embeddings)"
)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay pulls on it: not on norms, biases, scales and offsets."""
    return parameter.ndim >= 2 and not OFFSET.search(name)


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW:
    """`clip`: the largest gradient norm, 0 for none."""

    lr: float
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ValueError(f"{name} must be > 0 and finite, got {value}")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be >= 0 and finite, got {value}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be at least 0 and below 1, got {list(self.betas)}")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The parameters that require a gradient, the decayed first. Raises UserError if none does."""
        learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not learned:
            raise UserError(
                "nothing to learn: every parameter is locked; unlock a tower, a head or the scale"
            )
        groups = [
            {"params": [p for name, p in learned if decays(name, p)], "weight_decay": self.weight_decay},
            {"params": [p for name, p in learned if not decays(name, p)], "weight_decay": 0.0},
        ]
        kept = [group for group in groups if group["params"]]
        return torch.optim.AdamW(kept, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
