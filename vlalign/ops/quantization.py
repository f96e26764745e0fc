"""Weights in few bits: rounded, or by GPTQ, Frantar et al. 2022, https://arxiv.org/abs/2210.17323, alg. 1.

Scales are those of the weights as they were, so that columns may be taken in any order; the authors' code
takes a group's when it comes to the group.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from vlalign.ops.precision import wide

BLOCK = 128  # columns after which all later ones are corrected at once
TOKENS = (
    1024  # whose moments are summed at once: a product of few rows waits for the sum to be read and written
)


class Scales(NamedTuple):
    """`scale` [O, G] and `zero` int8 [O, G] of groups of columns; a weight is (level - zero) * scale."""

    scale: Tensor
    zero: Tensor
    bits: int

    @property
    def bounds(self) -> tuple[int, int]:
        """The lowest and the highest level."""
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    def levels(self, weight: Tensor) -> Tensor:
        """The nearest level to each weight, int8. `scale` and `zero` are as wide, or wide as one."""
        found = torch.round(weight / self.scale.to(weight.dtype)) + self.zero
        return found.clamp(*self.bounds).to(torch.int8)

    def weights(self, levels: Tensor) -> Tensor:
        """What levels stand for, in the numbers of `scale`."""
        return (levels - self.zero.to(torch.int16)).to(self.scale.dtype) * self.scale

    def spread(self, columns: int) -> "Scales":
        """The same for each column, [O, columns]."""
        times = columns // self.scale.shape[1]
        scale, zero = (x.repeat_interleave(times, 1) for x in self[:2])
        return Scales(scale, zero, self.bits)

    def at(self, columns: Tensor | slice) -> "Scales":
        """Of some columns."""
        return Scales(self.scale[:, columns], self.zero[:, columns], self.bits)


class Quantized(NamedTuple):
    """Levels int8 [O, I], and what they mean."""

    levels: Tensor
    scales: Scales

    @property
    def weight(self) -> Tensor:
        """[O, I]."""
        return self.scales.spread(self.levels.shape[1]).weights(self.levels)


def scales(weight: Tensor, bits: int, group: int | None = None, symmetric: bool = False) -> Scales:
    """From the smallest and the largest weight of each `group` of columns, None for a whole row, and zero.

    `symmetric`: `zero` is 0, and levels reach equally far on both sides. Of a weight [O, I]. Raises
    ValueError.
    """
    group = group or weight.shape[1]
    if weight.shape[1] % group:
        raise ValueError(f"{weight.shape[1]} columns cannot be shared by groups of {group}")
    own = wide(weight).reshape(len(weight), -1, group)
    low, high = own.amin(2).clamp(max=0), own.amax(2).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = ((high - low) / (2**bits - 1)).to(weight.dtype)  # the very number that loaded weights multiply
    scale = torch.where(scale > 0, scale, 1)
    zero = torch.zeros_like(low) if symmetric else -(2 ** (bits - 1)) - torch.round(low / scale)
    return Scales(scale, zero.clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8), bits)


def round_to_nearest(
    weight: Tensor, bits: int, group: int | None = None, symmetric: bool = False
) -> Quantized:
    """Each weight of [O, I] by itself. Raises ValueError."""
    own = scales(weight, bits, group, symmetric)
    return Quantized(own.spread(weight.shape[1]).levels(wide(weight)), own)


def gptq(
    weight: Tensor,
    moments: Tensor,
    bits: int,
    group: int | None = None,
    symmetric: bool = False,
    damping: float = 0.01,
    act_order: bool = False,
) -> Quantized:
    """Columns of [O, I] one by one, the later ones corrected for what rounding has changed.

    `moments`: of the inputs, [I, I] (`Moments`). `damping`: of their mean diagonal, added to it. `act_order`:
    the largest diagonal first. A column whose input was always 0 is rounded; the authors' code makes it 0.
    Raises ValueError.
    """
    own, columns = scales(weight, bits, group, symmetric), weight.shape[1]
    diagonal = moments.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if act_order else torch.arange(columns)
    spread, left = own.spread(columns).at(order), wide(weight)[:, order].clone()
    back = _inverse_root(moments[order][:, order], damping).to(left)
    levels = torch.empty(left.shape, dtype=torch.int8, device=left.device)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        errors = torch.empty_like(left[:, start:stop])
        for at in range(start, stop):
            column = spread.at(slice(at, at + 1))
            levels[:, at : at + 1] = column.levels(left[:, at : at + 1])
            change = left[:, at] - column.weights(levels[:, at : at + 1])[:, 0]
            errors[:, at - start] = change / back[at, at]
            left[:, at:stop] -= errors[:, at - start, None] * back[at, at:stop]
        left[:, stop:] -= errors @ back[start:stop, stop:]
    return Quantized(levels[:, order.argsort()], own)


def _inverse_root(moments: Tensor, damping: float) -> Tensor:
    """Upper U with U'U the inverse of the damped moments, float64."""
    own = moments.double().clone()
    diagonal = own.diagonal()  # a view
    dead = diagonal == 0
    diagonal[dead] = 1
    diagonal += damping * moments.diagonal().double().mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(own))
    found: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return found


class Moments:
    """H = 2 / n sum_j w_j x_j x_j' over the tokens of n texts, [width, width] float64.

    RSQ, Sung et al. 2025, https://arxiv.org/abs/2503.01820: GPTQ's, but that a token enters as sqrt(w) x.
    """

    def __init__(self, width: int) -> None:
        self.sum, self.texts = torch.zeros(width, width, dtype=torch.float64), 0
        self.waiting: list[Tensor] = []

    def add(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        """One text's, [T, width]; `weights` [T], None for ones."""
        own = wide(inputs)
        if weights is not None:
            own = own * weights.to(own).sqrt()[:, None]
        self.waiting.append(own)
        self.texts += 1
        if sum(map(len, self.waiting)) >= TOKENS:
            self._sum_up()

    @property
    def value(self) -> Tensor:
        """H."""
        self._sum_up()
        return 2 / self.texts * self.sum

    def _sum_up(self) -> None:
        if self.waiting:
            own = torch.cat(self.waiting)
            self.sum = self.sum.to(own.device)
            self.sum += own.T @ own
            self.waiting.clear()


def token_weights(scores: Tensor, low: float, high: float, power: float = 1.0) -> Tensor:
    """Weights [T] of mean 1 from one text's scores [T]: spread from `low` to `high`, raised to `power`.

    Ones where all scores are equal. RSQ's released code has H linear in the spread scores, `power` 1; tokens
    scaled by them, as the paper's words may be read, is 2.
    """
    scores = scores.double()
    smallest, largest = scores.min(), scores.max()
    if smallest == largest:
        return torch.ones_like(scores)
    weights = (low + (high - low) * (scores - smallest) / (largest - smallest)) ** power
    return weights / weights.mean()


def weighted_error(change: Tensor, moments: Tensor) -> Tensor:
    """tr(D H D') of a change D [O, I] of weights: 2 / n sum_j w_j |D x_j|^2."""
    own = change.to(moments)
    return ((own @ moments) * own).sum()


def orthogonal(width: int, seed: int) -> Tensor:
    """A random rotation or reflection [width, width], float64, each as likely (Haar's measure)."""
    drawn = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    turned, upper = torch.linalg.qr(drawn)
    found: Tensor = turned * upper.diagonal().sign()
    return found
