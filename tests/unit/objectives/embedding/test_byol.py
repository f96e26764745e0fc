from dataclasses import replace

import pytest
import torch

from tests.unit.objectives.embedding.learned import assert_alike, checked, context, in_bf16, with_head
from tests.unit.objectives.embedding.test_simsiam import naive
from tests.unit.ops.worlds import embeddings
from vlalign.objectives.embedding.byol import BYOL
from vlalign.objectives.embedding.simsiam import SimSiam

OBJECTIVE = BYOL(width=5)
AVERAGED = embeddings(6, 9, seed=1)
MOMENTUM = context(momentum={"query": AVERAGED.query, "key": AVERAGED.key})


@pytest.mark.parametrize("keys", [6, 9])
def test_equals_a_loop(keys):
    features = with_head(OBJECTIVE, 6, keys=keys)
    reference = naive(features, (AVERAGED.query.detach(), AVERAGED.key[:6].detach()))
    assert_alike(OBJECTIVE(features, MOMENTUM), reference, features)


def test_gradcheck_by_rows_and_predictors():
    features = with_head(OBJECTIVE, 6)
    leaves = ("query", "key", *(f"extras.{name}" for name in features.extras))
    assert checked(OBJECTIVE, features, MOMENTUM, leaves)


def test_the_averaged_weights_are_asked_for_and_have_no_gradient():
    assert OBJECTIVE.momentum
    loss = OBJECTIVE(with_head(OBJECTIVE, 6), MOMENTUM).sum()
    found = torch.autograd.grad(loss, [AVERAGED.query, AVERAGED.key], allow_unused=True)
    assert found == (None, None)


def test_is_simsiam_while_the_average_is_the_model_itself():
    features = with_head(OBJECTIVE, 6)
    now = context(momentum={"query": features.query, "key": features.key})
    assert_alike(OBJECTIVE(features, now), SimSiam(width=5)(features, context()), features)


def test_runs_from_zero_to_four():
    features = with_head(OBJECTIVE, 6)
    target = torch.eye(4, dtype=torch.float64)[:1].repeat(6, 1)
    for sign, value in ((1, 0.0), (-1, 4.0)):
        extras = {
            name: sign * target[0] if name.endswith("3.bias") else 0 * x
            for name, x in features.extras.items()
        }
        loss = OBJECTIVE(replace(features, extras=extras), context(momentum={"query": target, "key": target}))
        torch.testing.assert_close(loss, torch.full((6,), value).double())


def test_bf16():
    objective = BYOL(width=16)
    features, other = with_head(objective, 32, width=8), embeddings(32, 32, 8, seed=1)
    at = context(momentum={"query": other.query, "key": other.key})
    rounded = context(momentum={"query": other.query.bfloat16(), "key": other.key.bfloat16()})
    loss = objective(in_bf16(features), rounded)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), objective(features, at), rtol=0.05, atol=0.05)


def test_ranges():
    with pytest.raises(ValueError, match="width must be >= 1, got 0"):
        BYOL(width=0)
