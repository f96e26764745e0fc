"""Averaged weights: Polyak and Juditsky 1992 with exponential forgetting, as in Mean Teacher, https://arxiv.org/abs/1703.01780."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlalign.types import Batch


class Average:
    """An exponential average of what a model learns, in float32, on its device."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().float().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the optimizer's step. Early on it forgets faster, so that it is not about the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.shadow.items():
            average.lerp_(self.live[name].float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averaged weights, to be read only; outside, its own again."""
        own = {name: p.data for name, p in self.live.items()}
        try:
            for name, p in self.live.items():
                p.data = self.shadow[name].to(p.dtype)
            yield
        finally:
            for name, p in self.live.items():
                p.data = own[name]

    def load(self, shadow: Mapping[str, Tensor]) -> None:
        """Go on from a checkpoint's average."""
        for name, average in self.shadow.items():
            average.copy_(shadow[name])


@torch.no_grad()
def with_momentum(average: Average, model: nn.Module, chunks: Sequence[Batch]) -> list[Batch]:
    """Chunks with the rows that the averaged weights make of them, as `momentum`.

    Of the pictures in `teacher`, where a chunk has these beside its own.
    """
    with average.applied():
        rows = [model({**chunk, "query": chunk.get("teacher", chunk["query"])}) for chunk in chunks]
    return [
        {**chunk, "momentum": {"query": each.query, "key": each.key}}
        for chunk, each in zip(chunks, rows, strict=True)
    ]
