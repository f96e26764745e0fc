"""Sorting that can be differentiated: a network of soft swaps."""

import math

import torch
from torch import Tensor


def odd_even_sort(scores: Tensor, steepness: float) -> tuple[Tensor, Tensor]:
    """Scores [N, n] -> softly ascending [N, n], and how likely each has each rank, [N, n, n].

    Each of n layers compares neighbours, alternately from the first and from the second on, and swaps them as
    far as a Cauchy distribution function of their difference says. The steeper, the harder.
    """
    rows, size = scores.shape
    identity = torch.eye(size, dtype=scores.dtype, device=scores.device).expand(rows, size, size)
    state = torch.cat([scores[:, None], identity], 1)  # [N, 1 + n, n], so that all is mixed alike
    for layer in range(size):
        start = layer % 2
        pairs = (size - start) // 2
        first, compared, last = torch.split(state, [start, 2 * pairs, size - start - 2 * pairs], -1)
        left, right = compared.reshape(rows, 1 + size, pairs, 2).unbind(-1)
        stays = ((right[:, :1] - left[:, :1]) * steepness).atan() / math.pi + 0.5  # [N, 1, pairs]
        mixed = [stays * left + (1 - stays) * right, (1 - stays) * left + stays * right]
        state = torch.cat([first, torch.stack(mixed, -1).flatten(-2), last], -1)
    return state[:, 0], state[:, 1:]
