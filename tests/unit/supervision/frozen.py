"""Rows whose frozen features are given."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Given:
    """`known`: features by side and model; `fields`: labels by name; `written`: strings by name."""

    known: dict[tuple[str, str | None], Tensor]
    fields: dict[str, Tensor] = field(default_factory=dict)
    written: dict[str, list[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter((self.known or self.written).values())))

    def features(self, side: str, model: str | None = None) -> Tensor:
        return self.known[side, model]

    def field(self, name: str) -> Tensor:
        return self.fields[name]

    def strings(self, name: str) -> list[str | None]:
        return self.written[name]


def blobs(sizes: list[int], dim: int = 8, noise: float = 0.05, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows around as many orthogonal axes as there are sizes, shuffled, and the axis of each."""
    random = torch.Generator().manual_seed(seed)
    label = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    label = label[torch.randperm(len(label), generator=random)]
    rows = torch.eye(dim)[label] + noise * torch.randn(len(label), dim, generator=random)
    return F.normalize(rows, dim=1), label


def same_partition(one: Tensor, other: Tensor) -> bool:
    """Whether two labellings put the same rows together."""
    return torch.equal(one[:, None] == one, other[:, None] == other)
