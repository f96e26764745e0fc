from dataclasses import replace

import pytest
import torch

from tests.unit.objectives.embedding.learned import assert_alike, checked, context, in_bf16, slopes
from tests.unit.ops.worlds import embeddings
from vlalign.objectives.embedding.faithful import Faithful


@pytest.mark.parametrize("keys", [6, 9])
def test_equals_a_loop(keys):
    features = embeddings(6, keys)
    pairs = zip(features.query, features.key.detach(), strict=False)
    reference = torch.stack([sum((x - y) ** 2 for x, y in zip(*pair, strict=True)) for pair in pairs])
    assert_alike(Faithful()(features, context()), reference, features)


def test_gradcheck():
    assert checked(Faithful(), embeddings(4, 4), context(), ("query",))


def test_it_is_zero_of_what_was_not_changed_and_keys_learn_nothing():
    features = embeddings(6, 6)
    same = replace(features, query=features.key.detach().clone().requires_grad_())
    assert Faithful()(same, context()).eq(0).all()
    found = slopes(Faithful()(features, context()).sum(), features)
    torch.testing.assert_close(found["query"], 2 * (features.query - features.key).detach())
    assert found["key"].eq(0).all()


def test_permuting_rows_permutes_losses():
    features, order = embeddings(6, 6), torch.tensor([3, 1, 5, 0, 2, 4])
    moved = replace(features, query=features.query[order], key=features.key[order])
    torch.testing.assert_close(Faithful()(moved, context()), Faithful()(features, context())[order])


def test_bf16():
    features = embeddings(16, 16)
    loss = Faithful()(in_bf16(features), context())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), Faithful()(features, context()), rtol=0.02, atol=0.02)
