import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.unit.objectives.embedding.learned import assert_alike, checked, context, in_bf16, slopes, with_head
from vlalign.objectives.embedding.swav import SwAV
from vlalign.ops.sinkhorn import sinkhorn
from vlalign.types import Embeddings, UserError

OBJECTIVE = SwAV(prototypes=3, freeze=0)


def codes(features: Embeddings, epsilon: float = 0.05) -> tuple[Tensor, Tensor]:
    """Of queries and of keys, fixed."""
    prototypes = normalize(features.extras["weight"], dim=1)
    rows = (features.query, features.key[: len(features.query)])
    return tuple(sinkhorn((side @ prototypes.T).detach(), epsilon, 3) for side in rows)


def naive(features: Embeddings, temperature: float = 0.1) -> Tensor:
    """One row and one prototype at a time."""
    prototypes = [c / c.norm() for c in features.extras["weight"]]
    losses = []
    for at, (of_query, of_key) in enumerate(zip(*codes(features), strict=True)):
        loss = 0
        for row, code in ((features.query[at], of_key), (features.key[at], of_query)):
            scores = [row @ c / temperature for c in prototypes]
            total = sum(score.exp() for score in scores).log()
            loss = loss - sum(q * (score - total) for q, score in zip(code, scores, strict=True)) / 2
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("keys", [12, 15])
def test_equals_a_loop(keys):
    features = with_head(OBJECTIVE, 12, keys=keys)
    assert_alike(OBJECTIVE(features, context()), naive(features), features)


def test_gradcheck_with_codes_that_are_given(monkeypatch):
    features = with_head(OBJECTIVE, 12)
    fixed = codes(features)[0]
    monkeypatch.setattr("vlalign.objectives.embedding.swav.sinkhorn", lambda *_: fixed)
    assert checked(OBJECTIVE, features, context(), ("query", "key", "extras.weight"))


def test_codes_have_no_gradient():
    """Rows meet in their codes alone."""
    features = with_head(OBJECTIVE, 12)
    gradients = slopes(OBJECTIVE(features, context())[0], features)
    for side in ("query", "key"):
        assert gradients[side][0].abs().max() > 0 and gradients[side][1:].eq(0).all()


@pytest.mark.parametrize(("step", "learns"), [(1, False), (5, False), (6, True)])
def test_prototypes_learn_after_the_first_steps(step, learns):
    objective = replace(OBJECTIVE, freeze=5)
    features = with_head(objective, 12)
    loss = objective(features, context(step))
    torch.testing.assert_close(loss, naive(features))
    gradients = slopes(loss.sum(), features)
    assert (gradients["extras.weight"].abs().max() > 0) == learns
    assert gradients["query"].abs().max() > 0


def test_the_length_of_prototypes_does_not_matter():
    features = with_head(OBJECTIVE, 12)
    longer = replace(features, extras={"weight": 7 * features.extras["weight"]})
    torch.testing.assert_close(OBJECTIVE(longer, context()), OBJECTIVE(features, context()))


def test_collapse_costs_log_k_and_has_no_gradient():
    features = with_head(OBJECTIVE, 12)
    with torch.no_grad():
        features.extras["weight"].copy_(features.extras["weight"][:1].expand(3, -1))
    loss = OBJECTIVE(features, context())
    torch.testing.assert_close(loss, torch.full((12,), math.log(3)).double())
    gradients = slopes(loss.sum(), features)
    assert gradients["query"].abs().max() < 1e-12 and gradients["key"].abs().max() < 1e-12


def test_identical_views_cost_at_least_the_entropy_of_their_codes():
    features = with_head(OBJECTIVE, 12)
    same = replace(features, key=features.query)
    code = codes(same)[0]
    entropy = -torch.xlogy(code, code).sum(1)
    assert (OBJECTIVE(same, context()) >= entropy - 1e-12).all()


def test_swapping_the_sides_changes_nothing():
    features = with_head(OBJECTIVE, 12)
    swapped = replace(features, query=features.key, key=features.query)
    torch.testing.assert_close(OBJECTIVE(swapped, context()), OBJECTIVE(features, context()))


def test_permuting_rows_permutes_losses():
    features, order = with_head(OBJECTIVE, 12), torch.randperm(12)
    moved = replace(features, query=features.query[order], key=features.key[order])
    torch.testing.assert_close(OBJECTIVE(moved, context()), OBJECTIVE(features, context())[order])


def test_more_prototypes_than_a_batch_can_share_are_refused():
    assert SwAV(prototypes=3).least_rows == 12  # told before the first step
    assert SwAV(prototypes=3)(with_head(OBJECTIVE, 11), context()).shape == (11,)  # a row was bad
    told = "3 prototypes are too many for a batch of 2 rows; use prototypes: 1 or fewer"
    with pytest.raises(UserError, match=told):
        SwAV(prototypes=3)(with_head(OBJECTIVE, 2), context())


def test_bf16():
    features = with_head(OBJECTIVE, 12, width=8)
    loss = OBJECTIVE(in_bf16(features), context())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), OBJECTIVE(features, context()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["prototypes", "iterations", "temperature", "epsilon", "freeze"])
def test_ranges(name):
    with pytest.raises(ValueError, match=f"{name} must be >=? [01], got -1"):
        SwAV(**{name: -1})
