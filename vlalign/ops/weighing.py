"""Weights of rows: what they are compared with, their mean, and what teaches those that are learnt."""

from typing import NamedTuple

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.types import Context, Rows


class Weighing(NamedTuple):
    """One direction of a term whose weighter learns from a step that is tried (`vlalign.train.meta`)."""

    losses: Tensor  # [Q] unweighted, 0 where there is nothing to learn
    rates: Tensor  # [Q] > 0, weights before their mean is 1; differentiable by the weighter's own head
    valid: Tensor  # [Q] bool
    row: Tensor  # [Q] int64, rows of the data


def table_of(context: Context) -> Rows:
    """The rows of a table. Raises ValueError where there is none, for the ranks meet through it."""
    if context.rows is None:
        raise ValueError("this weighter compares the rows of a table, and the task has none; use align")
    return context.rows


def everyones_valid(x: Tensor, rows: Rows) -> Tensor:
    """What `x` [Q] is in the valid rows of every rank, without a gradient; [] when no row is valid."""
    every = rows.everyones(wide(x.detach()).masked_fill(~rows.valid, -torch.inf))
    return every[every > -torch.inf]


def standardised(x: Tensor, rows: Rows) -> Tensor:
    """`x` [Q] with mean 0 and variance 1 over the valid rows of every rank; what is constant becomes 0."""
    every = everyones_valid(x, rows)
    mean = every.sum() / max(len(every), 1)
    variance = (every - mean).square().sum() / max(len(every), 1)
    return (wide(x.detach()) - mean) / (variance.sqrt() + 1e-6)


def mean_one(weights: Tensor, rows: Rows) -> Tensor:
    """Weights [Q] over their mean in the valid rows of every rank, 0 in the others; without a gradient."""
    every = everyones_valid(weights, rows)
    mean = every.sum() / max(len(every), 1)
    scaled = wide(weights.detach()) / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return scaled.masked_fill(~rows.valid, 0)
