import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.embedding.learned import (
    assert_alike,
    checked,
    context,
    in_bf16,
    slopes,
    with_head,
)
from vlalign.objectives.embedding.simsiam import SimSiam
from vlalign.types import Embeddings

OBJECTIVE = SimSiam(width=5)


def predicted(rows: Tensor, side: str, features: Embeddings) -> Tensor:
    own = {name.removeprefix(f"{side}."): x for name, x in features.extras.items()}
    hidden = rows @ own["0.weight"].T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    return (hidden * own["1.weight"] + own["1.bias"]).relu() @ own["3.weight"].T + own["3.bias"]


def naive(features: Embeddings, targets: tuple[Tensor, Tensor]) -> Tensor:
    """One row at a time; targets are the queries and keys that are predicted."""
    to_key, to_query = (
        predicted(getattr(features, side)[: len(features.query)], side, features) for side in ("query", "key")
    )
    losses = []
    for row, (query, key) in enumerate(zip(*targets, strict=True)):
        ways = [
            2 - 2 * (p @ v) / (p.norm() * v.norm()) for p, v in ((to_key[row], key), (to_query[row], query))
        ]
        losses.append(sum(ways) / 2)
    return torch.stack(losses)


@pytest.mark.parametrize("keys", [6, 9])
def test_equals_a_loop(keys):
    features = with_head(OBJECTIVE, 6, keys=keys)
    reference = naive(features, (features.query.detach(), features.key[:6].detach()))
    assert_alike(OBJECTIVE(features, context()), reference, features)


def test_gradcheck_by_the_predictors():
    features = with_head(OBJECTIVE, 6)
    assert checked(OBJECTIVE, features, context(), tuple(f"extras.{name}" for name in features.extras))


def test_targets_have_no_gradient():
    features = with_head(OBJECTIVE, 6)
    silent = {name: 0 * x if name.endswith("0.weight") else x for name, x in features.extras.items()}
    loss = OBJECTIVE(replace(features, extras=silent), context())  # predictions that do not see their rows
    gradients = slopes(loss.sum(), features)
    assert gradients["query"].eq(0).all() and gradients["key"].eq(0).all()
    assert gradients["extras.query.3.bias"].abs().max() > 0


@pytest.mark.parametrize(("sign", "value"), [(1, 0.0), (-1, 4.0)])
def test_runs_from_zero_to_four(sign, value):
    features = with_head(OBJECTIVE, 6)
    target = torch.eye(4, dtype=torch.float64)[:1]
    same = replace(features, query=target.repeat(6, 1), key=target.repeat(6, 1))
    extras = {
        name: sign * target[0] if name.endswith("3.bias") else 0 * x for name, x in features.extras.items()
    }
    torch.testing.assert_close(
        OBJECTIVE(replace(same, extras=extras), context()), torch.full((6,), value).double()
    )
    loss = OBJECTIVE(features, context())
    assert ((loss >= 0) & (loss <= 4)).all()


def test_permuting_rows_permutes_losses():
    features, order = with_head(OBJECTIVE, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = replace(features, query=features.query[order], key=features.key[order])
    torch.testing.assert_close(OBJECTIVE(moved, context()), OBJECTIVE(features, context())[order])


def test_the_head_has_parameters_alone_and_builds_without_memory():
    with torch.device("meta"):
        module = OBJECTIVE.head(4)
    assert not list(module.buffers()) and all(x.is_meta for x in module.parameters())
    sizes = {name: tuple(x.shape) for name, x in module.named_parameters()}
    assert sizes["query.0.weight"] == (5, 4) and sizes["key.3.weight"] == (4, 5)
    assert sum(math.prod(size) for size in sizes.values()) == 2 * (20 + 10 + 24)


def test_bf16():
    objective = SimSiam(width=16)
    features = with_head(objective, 32, width=8)
    loss = objective(in_bf16(features), context())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), objective(features, context()), rtol=0.05, atol=0.05)


def test_ranges():
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        SimSiam(width=0)
