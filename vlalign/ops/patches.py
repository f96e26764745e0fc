"""A picture as a text sees it: the mean of the patches that are most like the text."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.ops.precision import wide


def chosen(
    patches: Tensor,
    texts: Tensor,
    share: float,
    temperature: float | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Patches [B, n, D] and texts of their picture [B, m, D] -> unit rows [B, m, D], places [B, m, k].

    Chosen for a text is the `share` of the patches, rounded up, with the highest cosines, the first of equal
    ones; places come in that order. They are weighed by the softmax of cosine / temperature; None: alike.
    `mask` [B, n] is False at padding, of which nothing is chosen: places of a picture that has fewer than k
    end with -1. Each picture needs one patch; texts do not see each other, so those of padding do no harm.
    """
    patches, texts = wide(patches), wide(texts)
    real = patches.new_ones(patches.shape[:2], dtype=torch.bool) if mask is None else mask
    cosines = normalize(texts, dim=-1) @ normalize(patches, dim=-1).mT  # [B, m, n]
    best = cosines.detach().masked_fill(~real[:, None], -torch.inf)
    order = best.argsort(dim=-1, descending=True, stable=True)
    counts = (real.sum(1).double() * share - 1e-9).ceil().clamp(min=1).long()  # [B]; less what floats add
    taken = torch.arange(real.shape[1], device=real.device) < counts[:, None, None]  # [B, 1, n] by rank
    kept = torch.zeros_like(best, dtype=torch.bool).scatter(-1, order, taken.expand_as(order))
    logits = torch.zeros_like(cosines) if temperature is None else cosines / temperature
    weights = logits.masked_fill(~kept, -torch.inf).softmax(-1)
    return normalize(weights @ patches, dim=-1), order.where(taken, -1)[..., : int(counts.max())]
