"""Embeddings that come with the parameters of an objective's head, all leaves."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.unit.ops.worlds import embeddings
from vlalign.types import Context, Embeddings


def with_head(objective, rows: int, width: int = 4, keys: int | None = None, seed: int = 0) -> Embeddings:
    """Random unit rows, and the head's parameters, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = objective.head(width).double()
    features = embeddings(rows, keys or rows, width, seed)
    return replace(features, extras=dict(module.named_parameters()))


def context(step: int = 1, total: int = 100, **batch) -> Context:
    """A step whose batch has these things."""
    return Context(batch, None, step, total)


def slopes(loss: Tensor, features: Embeddings) -> dict[str, Tensor]:
    """Gradients by queries, keys and each parameter of the head, by name."""
    leaves = {name: x for name, x in features.tensors().items() if name not in ("scale", "bias")}
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def assert_alike(loss: Tensor, reference: Tensor, features: Embeddings) -> None:
    """Equal losses [N], and equal gradients of a sum that tells rows apart."""
    torch.testing.assert_close(loss, reference, atol=1e-10, rtol=1e-10)
    tell = torch.arange(1, len(loss) + 1, dtype=loss.dtype)
    mine, other = (slopes((each * tell).sum(), features) for each in (loss, reference))
    torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


def checked(objective, features: Embeddings, at: Context, leaves: tuple[str, ...]) -> bool:
    """gradcheck of the losses by some of the leaves, by name."""
    named = features.tensors()

    def losses(*moved: Tensor) -> Tensor:
        now = named | dict(zip(leaves, moved, strict=True))
        extras = {name.removeprefix("extras."): x for name, x in now.items() if name.startswith("extras.")}
        return objective(replace(features, query=now["query"], key=now["key"], extras=extras), at)

    return torch.autograd.gradcheck(losses, [named[name] for name in leaves])


def in_bf16(features: Embeddings) -> Embeddings:
    """The same, rounded."""
    extras = {name: x.bfloat16() for name, x in features.extras.items()}
    return replace(features, query=features.query.bfloat16(), key=features.key.bfloat16(), extras=extras)
