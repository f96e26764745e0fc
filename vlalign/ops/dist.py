"""Ranks: the only module that knows there are several. In one process everything here is the identity.

Of a table with N keys of width D, each of W ranks computes the block of its own queries. What crosses ranks
for it in a step: the keys once, [N, D], and the fields that targets and selectors read; for each statistic of
columns its peak and sums, a few numbers a key, and a number a key on the way back; and the gradient of a
rank's own keys, [N / W, D], summed on the way. The queries too for objectives of the embeddings themselves,
for synthetic negatives of keys, for whole rows of keys, and for attributes.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as torch_dist
from torch import Tensor


def launched() -> tuple[int, int]:
    """Which process this is and how many were started, as their launcher says; no group is needed."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def own_device() -> torch.device:
    """This process's GPU of its machine, or the CPU, as its launcher says; no group is needed."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def world() -> int:
    """How many processes share the batch."""
    return torch_dist.get_world_size() if torch_dist.is_available() and torch_dist.is_initialized() else 1


def everyones_sum(x: Tensor) -> Tensor:
    """The sum over ranks, elementwise; no gradient."""
    return _reduced(x, torch_dist.ReduceOp.SUM) if world() > 1 else x


def everyones_max(x: Tensor) -> Tensor:
    """The maximum over ranks, elementwise; no gradient."""
    return _reduced(x, torch_dist.ReduceOp.MAX) if world() > 1 else x


class Shares:
    """How the rows of one split tensor lie on the ranks: each has its own number of them, zero included."""

    def __init__(self, counts: Sequence[int], rank: int) -> None:
        """Every rank must enter each `gather` and backward of `own`, in the same order."""
        self.counts, self.rank = list(counts), rank

    @property
    def mine(self) -> int:
        """Rows of this rank."""
        return self.counts[self.rank]

    def gather(self, x: Tensor) -> Tensor:
        """This rank's rows [n, ...] -> everybody's, by rank; each row's gradient is summed over ranks."""
        return x if world() == 1 else _Gather.apply(x, self)

    def own(self, x: Tensor) -> Tensor:
        """Everybody's rows -> this rank's; the gradient is gathered, so each rank sees everybody's."""
        return x if world() == 1 else _Own.apply(x, self)

    def mine_of(self, x: Tensor) -> Tensor:
        """Everybody's rows -> this rank's, the others' gradient being 0."""
        return torch.split(x, self.counts)[self.rank]

    def _collect(self, x: Tensor) -> Tensor:
        """gloo wants equal shapes: rows are padded on the way, and the padding is dropped on arrival."""
        padded = x.new_zeros(max(self.counts), *x.shape[1:])
        padded[: x.shape[0]] = x
        every = [torch.empty_like(padded) for _ in self.counts]
        torch_dist.all_gather(every, padded)
        return torch.cat([part[:count] for part, count in zip(every, self.counts, strict=True)])


def shared(rows: Sequence[int], device: torch.device) -> list[Shares]:
    """Of several tensors, of which this rank has so many rows each; every rank must call it."""
    mine = torch.tensor(rows, device=device)
    if world() == 1:
        return [Shares([count], 0) for count in rows]
    every = [torch.empty_like(mine) for _ in range(world())]
    torch_dist.all_gather(every, mine)
    return [Shares(counts, torch_dist.get_rank()) for counts in torch.stack(every, 1).tolist()]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Shares) -> Tensor:
        ctx.shares = shares
        return shares._collect(x)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        shares = ctx.shares
        own = upstream.new_empty(shares.mine, *upstream.shape[1:])
        torch_dist.reduce_scatter(own, [part.contiguous() for part in torch.split(upstream, shares.counts)])
        return own, None


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Shares) -> Tensor:
        ctx.shares = shares
        return shares.mine_of(x).clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        return ctx.shares._collect(upstream), None


def _reduced(x: Tensor, operation: Any) -> Tensor:
    x = x.detach().clone(memory_format=torch.contiguous_format)
    torch_dist.all_reduce(x, operation)
    return x
