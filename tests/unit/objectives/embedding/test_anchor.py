from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from tests.unit.objectives.embedding.learned import assert_alike, checked, context, in_bf16, slopes
from tests.unit.ops.worlds import embeddings
from vlalign.objectives.embedding.anchor import Anchor
from vlalign.types import UserError

SIDES = ("query", "key")


def frozen(features, seed=1):
    """A step of which a frozen model has made other unit rows, of the keys of others too."""
    made = embeddings(len(features.query), len(features.key), seed=seed)
    fields = {f"{side}_fields": {"initial": getattr(made, side).detach().float()} for side in SIDES}
    return context(**fields)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("keys", [6, 9])
def test_equals_a_loop(side, keys):
    features = embeddings(6, keys)
    at = frozen(features)
    before = at.batch[f"{side}_fields"]["initial"].double()
    pairs = zip(getattr(features, side)[:6], before[:6], strict=True)
    reference = torch.stack([sum((x - y) ** 2 for x, y in zip(*pair, strict=True)) for pair in pairs])
    assert_alike(Anchor(side=side)(features, at), reference, features)


@pytest.mark.parametrize("side", SIDES)
def test_gradcheck(side):
    features = embeddings(4, 4)
    assert checked(Anchor(side=side), features, frozen(features), SIDES)


@pytest.mark.parametrize("side", SIDES)
def test_it_begins_at_zero_and_pulls_back_along_the_way_that_was_gone(side):
    features = embeddings(6, 6)
    own = getattr(features, side)
    at = context(**{f"{side}_fields": {"initial": own.detach()}})
    loss = Anchor(side=side)(features, at)
    assert loss.eq(0).all() and slopes(loss.sum(), features)[side].eq(0).all()
    moved = normalize(own + 0.3 * torch.randn(own.shape, dtype=own.dtype), dim=1).detach().requires_grad_()
    loss = Anchor(side=side)(replace(features, **{side: moved}), at)
    (slope,) = torch.autograd.grad(loss.sum(), moved)
    torch.testing.assert_close(slope, 2 * (moved - own).detach())
    assert ((loss > 0) & (loss <= 4)).all()


@pytest.mark.parametrize(("side", "other"), [SIDES, SIDES[::-1]])
def test_the_other_side_learns_nothing(side, other):
    features = embeddings(6, 6)
    found = slopes(Anchor(side=side)(features, frozen(features)).sum(), features)
    assert found[other].eq(0).all() and found[side].ne(0).any()


def test_permuting_rows_permutes_losses():
    features, order = embeddings(6, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    at = frozen(features)
    moved = replace(features, query=features.query[order])
    there = context(query_fields={"initial": at.batch["query_fields"]["initial"][order]})
    torch.testing.assert_close(Anchor()(moved, there), Anchor()(features, at)[order])


def test_bf16():
    features = embeddings(16, 16, width=8)
    made = embeddings(16, 16, width=8, seed=1).query.detach()
    at = context(query_fields={"initial": made.float()})
    loss = Anchor()(in_bf16(features), at)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), Anchor()(features, at), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("rows", "found"), [(torch.zeros(6, 5), 5), (torch.arange(6), 1)])
def test_rows_of_another_width_are_told(rows, found):
    told = f"embeddings have 4 numbers and the field 'first' has {found} a row; annotate it from a saved"
    with pytest.raises(UserError, match=told):
        Anchor(field="first")(embeddings(6, 6), context(query_fields={"first": rows}))
