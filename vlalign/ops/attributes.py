"""What texts tell of a picture. Q rows with A attributes each, pictures of B rows, width D."""

import math

import torch
from torch import Tensor

SCORES = 2**24  # in memory at once


def information(own: Tensor, images: Tensor, attributes: Tensor, scale: Tensor) -> Tensor:
    """Of each attribute on the picture of its row, in nats: [Q, A], at most log B.

    s_own - log mean_j exp(s_j), s the scaled cosine: InfoNCE's bound of the mutual information (van den Oord
    et al. 2018, https://arxiv.org/abs/1807.03748), of one pair. `own` [Q, D], `images` [B, D] of which those
    of the rows are some, `attributes` [Q, A, D], all unit rows.
    """
    flat = attributes.flatten(0, 1)
    parts = torch.split(flat, max(1, SCORES // len(images)))
    anyones = torch.cat([torch.logsumexp(scale * part @ images.T, 1) for part in parts])
    beside = scale * (own[:, None] * attributes).sum(-1)
    return beside - (anyones.view(beside.shape) - math.log(len(images)))


def shares(information: Tensor, known: Tensor, temperature: float) -> Tensor:
    """Softmax over the known attributes of each row [Q, A]; 0 for the others, and where none is known."""
    seen = information.masked_fill(~known, -torch.inf)
    return ((seen - seen.amax(1, keepdim=True)) / temperature).softmax(1).where(known, 0)
