"""Weigh negatives by community, after gCooL, Li, Jing and Tong 2022, https://arxiv.org/abs/2110.14863."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vlalign.registry import SELECTORS


@SELECTORS.register("communal")
@dataclass(frozen=True, kw_only=True)
class Communal:
    """A negative counts 1 less `kappa` times the chance that it and the row share a community; a positive, 1.

    Reads the memberships `communities` of rows and columns, which the embedding objective `communal` makes.
    This use of communities is not the paper's, whose nodes are all full negatives.
    """

    kappa: float = 1.0

    fields = ("communities",)
    reductions: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa must be between 0 and 1, got {self.kappa}")

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Float [q, k]."""
        # One is [q, 1, K] and the other [1, k, K]: einsum makes of it a matrix product, no [q, k, K].
        together = torch.einsum("qkc,qkc->qk", row["communities"], column["communities"])
        weight = (1 - self.kappa * together).clamp(min=0)
        return torch.where(targets > 0, 1, weight)
