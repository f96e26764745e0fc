"""SwAV, Caron et al. 2020, https://arxiv.org/abs/2006.09882, eq. 1 to 5; of image and text SwALIP."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from vlalign.ops.precision import wide
from vlalign.ops.sinkhorn import sinkhorn
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings, UserError

ROWS_A_PROTOTYPE = 4  # with fewer, equal shares of a batch say nothing of its clusters


@EMBEDDING_OBJECTIVES.register("swav")
@dataclass(frozen=True, kw_only=True)
class SwAV:
    """Each side's softmax over learned unit `prototypes` predicts the other's code; the mean of both ways.

    A code is the side's scores made soft assignments by Sinkhorn over the whole batch, at `epsilon`, so that
    prototypes get equal shares of it; it has no gradient. `temperature`: of the softmax. `freeze`: steps
    before the prototypes learn. They are made unit where they are used, not after each step.

    Two whole views, image and text, without smaller crops, and without a queue: at most a prototype to four
    rows of a batch, of which the last two of an epoch may be half as large. Raises UserError.
    """

    prototypes: int = 3000
    temperature: float = 0.1
    epsilon: float = 0.05
    iterations: int = 3
    freeze: int = 313

    def __post_init__(self) -> None:
        for name in ("prototypes", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("temperature", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.freeze < 0:
            raise ValueError(f"freeze must be >= 0, got {self.freeze}")

    @property
    def least_rows(self) -> int:
        """Of a batch: codes of fewer rows a prototype mean nothing."""
        return self.prototypes * ROWS_A_PROTOTYPE

    def head(self, dim: int) -> nn.Module:
        """`weight` [K, D]."""
        return nn.Linear(dim, self.prototypes, bias=False)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        self._check(len(features.query))
        prototypes = normalize(wide(features.extras["weight"]), dim=1)
        if context.step <= self.freeze:  # the first step is 1
            prototypes = prototypes.detach()
        rows = features.query, features.key[: len(features.query)]
        query, key = (wide(side) @ prototypes.T for side in rows)  # [N, K]
        return (self._predict(query, key) + self._predict(key, query)) / 2

    def _predict(self, scores: Tensor, others: Tensor) -> Tensor:
        """Cross-entropy [N] with the other side's code."""
        with torch.no_grad():
            code = sinkhorn(others, self.epsilon, self.iterations)
        return -(code * (scores / self.temperature).log_softmax(1)).sum(1)

    def _check(self, rows: int) -> None:
        """Where some of a batch's rows were bad, it goes on with fewer than it should have."""
        if rows < self.prototypes:
            raise UserError(
                f"swav: {self.prototypes} prototypes are too many for a batch of {rows} rows; use "
                f"prototypes: {max(rows // ROWS_A_PROTOTYPE, 1)} or fewer"
            )
