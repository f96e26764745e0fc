"""Negatives of a sibling class, our reading of DCAR, Wang et al. 2025, https://arxiv.org/abs/2508.04028.

The formula is our reconstruction. Learned prompts are a field of towers, attributes one of the task align.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vlalign.registry import SELECTORS


@SELECTORS.register("sibling")
@dataclass(frozen=True, kw_only=True)
class Sibling:
    """A negative of the same `family` and another `label` counts 1 + `kappa` times as much as any other pair.

    Weights end at 1, so it counts 1 and the others 1 / (1 + kappa): beside weights that begin at 1 this takes
    log(1 + kappa) from an InfoNCE loss, and changes no gradient. Negatives of the same label stay; leave them
    out by `same_label`.
    """

    label: str = "label"
    family: str = "category"
    kappa: float = 1.0

    reductions: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        if not 0 <= self.kappa < float("inf"):
            raise ValueError(f"kappa must be >= 0 and finite, got {self.kappa}")

    @property
    def fields(self) -> tuple[str, ...]:
        """The class and what it belongs to."""
        return (self.label, self.family)

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Float [q, k]."""
        family = row[self.family] == column[self.family]
        hard = family & (row[self.label] != column[self.label]) & (targets == 0)
        weight: Tensor = (1 + self.kappa * hard.to(cosine.dtype)) / (1 + self.kappa)
        return weight
