"""Small tables for the tests: embeddings that are leaves, and the fields of their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlalign.ops.ask import Ask
from vlalign.ops.table import Table
from vlalign.types import Embeddings


def embeddings(
    queries: int, keys: int, width: int = 4, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Embeddings:
    """Random unit rows, scale 7 and bias -0.5, all leaves that require a gradient."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(queries + keys, width, generator=generator, dtype=torch.float64)
    query, key = normalize(rows, dim=-1).to(dtype).split([queries, keys])
    scale, bias = torch.tensor([7.0], dtype=dtype), torch.tensor([-0.5], dtype=dtype)
    return Embeddings(*(x.clone().requires_grad_() for x in (query, key, scale, bias)))


def batch(query: Sequence[int], key: Sequence[int], /, **more: tuple[Sequence[int], Sequence[int]]) -> dict:
    """A batch whose rows have these ids; `more`: other fields of the queries and of the keys."""
    fields = {"row": (query, key)} | more
    sides = [
        {name: torch.tensor(both[at], dtype=torch.int64) for name, both in fields.items()} for at in (0, 1)
    ]
    return {"query_fields": sides[0], "key_fields": sides[1], "ids": [str(row) for row in query]}


def leaves(features: Embeddings) -> list[Tensor]:
    """What a loss may be differentiated by."""
    return [features.query, features.key, features.scale, features.bias]


def gradients(loss: Tensor, features: Embeddings) -> list[Tensor]:
    """By each leaf, 0 where the loss does not depend on it."""
    return torch.autograd.grad(
        loss, leaves(features), retain_graph=True, allow_unused=True, materialize_grads=True
    )


def assert_same(loss: Tensor, reference: Tensor, features: Embeddings, atol: float = 1e-10) -> None:
    """Equal values and equal gradients by every leaf."""
    torch.testing.assert_close(loss, reference, atol=atol, rtol=atol)
    for mine, other in zip(gradients(loss, features), gradients(reference, features), strict=True):
        torch.testing.assert_close(mine, other, atol=atol, rtol=atol)


def logits(features: Embeddings, side: str = "query") -> Tensor:
    """The whole table, rows of one side first."""
    table = features.scale * features.query @ features.key.T + features.bias
    return table if side == "query" else table.T


def rows_of(objective, features, data, targets, side="query", selectors=(), tile=(3, 2)):
    """The rows that an objective sees."""
    ask = Ask(reductions=objective.reductions, side=side, targets=targets, selectors=selectors)
    return Table(features, data, tile).rows([ask])[0]


def losses_of(objective, features, data, targets, side="query", selectors=(), tile=(3, 2)) -> Tensor:
    """Losses of rows, 0 where there is nothing to learn."""
    rows = rows_of(objective, features, data, targets, side, selectors, tile)
    return torch.where(rows.valid, objective(rows), 0)


@dataclass(frozen=True)
class Graded:
    """Relevance 0, 1/2 or 1 by the distance of two ids; with `corner` only the 1 stays, as a float."""

    corner: bool = False
    query_fields = key_fields = ("row",)

    def tile(self, query, key):
        relevance = (1 - (query["row"] - key["row"]).abs() / 2).clamp(min=0)
        return (relevance == 1).float() if self.corner else relevance


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that a block of code makes, in the forward and in the backward."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return made
