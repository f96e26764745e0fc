"""Rows of which other processes have some too."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlalign.types import Context, Embeddings, Rows


class Some(Rows):
    """Rows of one process. `every`: what all processes have, answered in turn; None: these are all."""

    def __init__(
        self,
        valid: Tensor,
        every: Sequence[Tensor] | None = None,
        reductions: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.valid, self._every, self._reductions = valid, every, reductions or {}
        self._asked = 0

    def __getitem__(self, name: str) -> Tensor:
        return self._reductions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._reductions)

    def __len__(self) -> int:
        return len(self._reductions)

    def dense(self) -> Any:
        raise NotImplementedError

    def everyones(self, x: Tensor) -> Tensor:
        if self._every is None:
            return x
        self._asked += 1
        return self._every[self._asked - 1]


def context(
    losses: Tensor,
    valid: Tensor | None = None,
    *,
    step: int = 1,
    features: Embeddings | None = None,
    **reductions: Tensor,
) -> Context:
    """Of rows that are all in this process."""
    valid = torch.ones(len(losses), dtype=torch.bool) if valid is None else valid
    return Context({}, Some(valid, reductions=reductions), step, 9, features)
