"""Labelled examples that are nearest to what is asked: RAICL, Zhan et al. 2025, https://arxiv.org/abs/2505.02087.

How many, and in which order, is not known of theirs: here the nearest stands last, beside the question.
"""

from collections.abc import Sequence
from math import ceil
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

SMALL = 1e-12  # a distance that counts as none


def fused(parts: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """[w_1 x_1 ; w_2 x_2 ; ...] of features [N, D_i], one of each part: what weighs 0 is ignored."""
    return torch.cat([weight * part for part, weight in zip(parts, weights, strict=True)], dim=1)


def nearest(
    query: Tensor,
    store: Tensor,
    ids: Tensor,
    k: int,
    *,
    metric: Literal["euclidean", "cosine"] = "euclidean",
    exclude: Tensor | None = None,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Ids and distances [B, k] of what is nearest to `query` [B, D] in `store` [N, D], the nearest last.

    `ids`: of the store, int64 [N], no two alike; of equal distances the lower id's is the less. `exclude`:
    ids [*] that are not taken. `labels` [N]: with them at most ceil(k / C) of each of the C classes that are
    left are taken. Where there are fewer than k, all are. Cosine distance is 1 - cos.
    """
    if k < 0:
        raise ValueError(f"k must be >= 0, got {k}")
    if metric == "cosine":
        query, store = normalize(query, dim=1), normalize(store, dim=1)
    # Not as a product of matrices, whose rounding depends on where a row is: equal rows must tie.
    found = torch.cdist(query, store, compute_mode="donot_use_mm_for_euclid_dist")
    if metric == "cosine":
        found = found.square() / 2
    order = ids.argsort()
    if exclude is not None:
        order = order[~torch.isin(ids[order], exclude)]
    found, near = found[:, order].sort(dim=1, stable=True)
    places = order[near]
    if labels is not None:
        taken = _balanced(labels[places], k)
        found, places = found[taken].view(len(query), -1), places[taken].view(len(query), -1)
    return ids[places[:, :k]].flip(1), found[:, :k].flip(1)


def vote(right: Tensor, distances: Tensor) -> Tensor:
    """The share of right ones among examples, bool [*, k], each weighed by 1 / distance: [*].

    What a judge that was shown them must beat, since their labels tell it as much. One half where there is
    none.
    """
    if right.shape[-1] == 0:
        return distances.new_full(right.shape[:-1], 0.5)
    weight = 1 / distances.clamp(min=SMALL)
    return (weight * right).sum(-1) / weight.sum(-1)


def _balanced(labels: Tensor, k: int) -> Tensor:
    """Which of ranked labels [B, N] are among the first ceil(k / C) of their class; as many in every row."""
    taken, classes = torch.zeros_like(labels, dtype=torch.bool), set(labels.flatten().tolist())
    for each in classes:
        own = labels == each
        taken |= own & (own.cumsum(1) <= ceil(k / len(classes)))
    return taken
