"""What a method learns on top of embeddings: its module, and how that is applied to parameters alone."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cosine_similarity

from vlalign.ops.precision import wide
from vlalign.types import Embeddings


class Sides(nn.Module):
    """A module for each side, applied together."""

    def __init__(self, query: nn.Module, key: nn.Module) -> None:
        super().__init__()
        self.query, self.key = query, key

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """What each makes of its own rows."""
        return self.query(query), self.key(key)


class ShownNorm(nn.BatchNorm1d):
    """BatchNorm of the shown batch, of one row too, which is its own mean."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, D]."""
        return super().forward(x) if len(x) > 1 else self.bias + 0 * x


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers between these widths, BatchNorm and ReLU between layers; of one width, the identity.

    BatchNorm sees the shown batch alone, and remembers nothing.
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layers.append(nn.Linear(before, after, bias=last))
        if not last:
            layers += [ShownNorm(after, track_running_stats=False), nn.ReLU()]
    return nn.Sequential(*layers)


def predictors(dim: int, width: int) -> Sides:
    """A perceptron for each side, of one hidden layer, that says what the other side's embedding is."""
    return Sides(perceptron(dim, width, dim), perceptron(dim, width, dim))


def mispredicted(
    head: Callable[[int], nn.Module], features: Embeddings, query: Tensor, key: Tensor
) -> Tensor:
    """2 - 2 cos of `predictors` and their targets, the mean of both ways: [N] from 0 to 4.

    `query` and `key` [N, D] are what the other side's predictor should say; they get no gradient.
    """
    rows = len(features.query)
    to_key, to_query = applied(head, features, features.query, features.key[:rows])
    query, key = (wide(side[:rows]).detach() for side in (query, key))
    return 2 - cosine_similarity(to_key, key) - cosine_similarity(to_query, query)


def applied(head: Callable[[int], nn.Module], features: Embeddings, *inputs: Tensor) -> Any:
    """What a head makes of rows [N, D] with the parameters that came with the features; float32 at least."""
    parameters = {name: wide(x) for name, x in features.extras.items()}
    return functional_call(_shape(head, inputs[0].shape[1]), parameters, tuple(wide(x) for x in inputs))


@lru_cache(maxsize=64)
def _shape(head: Callable[[int], nn.Module], dim: int) -> nn.Module:
    """A head without numbers."""
    with torch.device("meta"):
        return head(dim)
