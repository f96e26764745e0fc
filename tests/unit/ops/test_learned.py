from dataclasses import replace

import torch

from tests.unit.ops.worlds import embeddings
from vlalign.ops.learned import Sides, applied, perceptron


def head(dim: int) -> Sides:
    return Sides(perceptron(dim, 5, 3), perceptron(dim))


def test_a_head_is_applied_to_the_parameters_that_came_with_the_features():
    module, features = head(4).double(), embeddings(6, 6)
    features = replace(features, extras=dict(module.named_parameters()))
    mine = applied(head, features, features.query, features.key)
    for each, other in zip(mine, module(features.query, features.key), strict=True):
        torch.testing.assert_close(each, other)
    assert torch.equal(mine[1], features.key)
    loss = mine[0].square().sum()
    for parameter in features.extras.values():
        assert torch.autograd.grad(loss, parameter, retain_graph=True)[0].shape == parameter.shape


def test_it_is_computed_in_float32_at_least():
    features = embeddings(6, 6, dtype=torch.bfloat16)
    extras = {name: x.bfloat16() for name, x in head(4).named_parameters()}
    assert (
        applied(head, replace(features, extras=extras), features.query, features.key)[0].dtype
        == torch.float32
    )


def test_batch_norm_sees_the_shown_batch_and_remembers_nothing():
    module = perceptron(4, 5, 3)
    rows = torch.randn(6, 4)
    before = module(rows)
    module(100 * rows)
    assert torch.equal(module.eval()(rows), before) and not list(module.buffers())
