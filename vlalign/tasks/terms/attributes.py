"""Texts in several parts, weighed: our reading of DCAR, Wang et al. 2025, https://arxiv.org/abs/2508.04028."""

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import normalize

from vlalign.ops.attributes import information, shares
from vlalign.ops.dist import shared
from vlalign.ops.precision import wide
from vlalign.specs import KNOWN_TEXTS
from vlalign.tasks.terms.width import check_scale
from vlalign.types import Batch, Embeddings


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """A row's text is its first caption and up to `most` of its others, its attributes, drawn each epoch.

    t = norm(t_0 + sum_a w_a t_a). The weights are a softmax over the row's attributes of what each tells of
    the row's picture among all pictures of the step (`vlalign.ops.attributes`), over `temperature`. No
    gradient passes through them. The paper's formulas are not public; this is our reconstruction, and keeps
    no average of weights over steps. In use a text is embedded by itself, for weights need its picture.
    """

    most: int = 4
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most must be >= 1, got {self.most}")
        check_scale("temperature", self.temperature)

    def joined(self, features: Embeddings, batch: Batch) -> Embeddings:
        """A text a row. `features.key`: of each row its caption and attributes, [Q (1 + most), D]."""
        query, key = features.query, wide(features.key)
        parts = key.view(len(query), 1 + self.most, key.shape[1])
        caption, attributes = parts[:, 0], parts[:, 1:]
        with torch.no_grad():
            [rows] = shared([len(query)], query.device)
            own = wide(query)
            told = information(own, rows.gather(own), attributes, wide(features.scale))
            weights = shares(told, batch["key_fields"][KNOWN_TEXTS], self.temperature)
        return replace(features, key=normalize(caption + (weights[..., None] * attributes).sum(1), dim=-1))
