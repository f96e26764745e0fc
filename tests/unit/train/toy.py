"""A small model with everything that makes cached gradients hard, and a naive loss."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlalign.types import Batch, Embeddings, Loss

WIDTH, DIM = 12, 8


class ToyModel(nn.Module):
    """Two towers with dropout, an unread bias, and a learned head that leaves through extras."""

    dim, scale_max = DIM, 100.0
    locked: frozenset[str] = frozenset()

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.Dropout(dropout))
        self.text = nn.Sequential(nn.Embedding(30, 16), nn.Dropout(dropout))
        self.image_head, self.text_head = nn.Linear(16, DIM), nn.Linear(16, DIM)
        self.scale, self.bias = nn.Parameter(torch.tensor([math.log(10.0)])), nn.Parameter(torch.zeros(1))
        self.anchors = nn.Parameter(torch.randn(3, DIM))

    def train(self, mode: bool = True) -> "ToyModel":
        super().train(mode)
        self.image[1].eval()  # as towers do: BatchNorm keeps its statistics
        return self

    def forward(self, batch: Batch) -> Embeddings:
        query = F.normalize(self.image_head(self.image(batch["query"]["pixels"])), dim=-1)
        key = F.normalize(self.text_head(self.text(batch["key"]["input_ids"]).mean(1)), dim=-1)
        return Embeddings(query, key, self.scale.exp(), self.bias, {"anchors": self.anchors * 2})

    @torch.no_grad()
    def clamp_scale(self) -> None:
        self.scale.clamp_(max=math.log(self.scale_max))


@dataclass(frozen=True, kw_only=True)
class ToyTask:
    """Symmetric InfoNCE with a term on the extras, dense, on one process."""

    coupled: bool = True

    def rows(self, batch: Batch) -> int:
        return len(batch["ids"])

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        logits = features.scale * features.query @ features.key.T
        want = torch.arange(len(logits))
        same = batch["query_fields"]["row"][:, None] == batch["key_fields"]["row"][None, :]
        assert same.diagonal().all()
        nce = (
            F.cross_entropy(logits, want, reduction="sum") + F.cross_entropy(logits.T, want, reduction="sum")
        ) / 2
        pull = (features.query @ features.extras["anchors"].T).square().sum()
        return Loss(nce + 0.1 * pull, {"nce": nce.detach(), "pull": pull.detach()})


@dataclass(frozen=True, kw_only=True)
class RowTask:
    """A loss in which no row sees another."""

    coupled: bool = False

    def rows(self, batch: Batch) -> int:
        return len(batch["ids"])

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        losses = (features.query - features.key).square().sum(-1) * features.scale
        return Loss(losses.sum(), {"pair": losses.detach().sum()})


def batch(start: int, stop: int) -> Batch:
    """Rows `start` to `stop` of an endless random data set."""

    def row(index: int) -> tuple[Tensor, Tensor]:
        own = torch.Generator().manual_seed(index)
        return torch.randn(WIDTH, generator=own), torch.randint(30, (5,), generator=own)

    pixels, ids = zip(*(row(index) for index in range(start, stop)), strict=True)
    fields = {"row": torch.arange(start, stop)}
    return {
        "query": {"pixels": torch.stack(pixels)}, "key": {"input_ids": torch.stack(ids)},
        "query_fields": fields, "key_fields": fields,
        "ids": [f"row{index}" for index in range(start, stop)], "bad": [], "converted": [],
    }  # fmt: skip
