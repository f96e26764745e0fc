"""Weights of a caption's tokens by their importance, against a loop in fp64."""

import math

import pytest
import torch

from vlalign.registry import TASKS, TOKEN_WEIGHTERS
from vlalign.types import Context, TokenLogits

LENGTHS = [1, 5, 0, 2, 4]
SCORES = torch.randn(sum(LENGTHS), generator=torch.Generator().manual_seed(0))
ROW = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))


def context(scores, **more):
    return Context({"pairs": {"row": ROW, **more}, "token_fields": {"importance": scores}}, None, 1, 10)


def weights(scores=SCORES, **fields):
    made = TOKEN_WEIGHTERS.decode({"name": "importance", **fields})
    return made(torch.ones(len(scores), dtype=torch.float64), context(scores)).split(LENGTHS)


@pytest.mark.parametrize(("low", "high", "power"), [(0.1, 1.0, 1.0), (0.0, 2.0, 1.0), (0.005, 1.0, 2.0)])
def test_weights_are_those_of_a_loop(low, high, power):
    for own, found in zip(SCORES.split(LENGTHS), weights(low=low, high=high, power=power), strict=True):
        told = own.double().tolist()
        spread = [
            (low + (high - low) * (x - min(told)) / (max(told) - min(told))) ** power if len(told) > 1 else 1
            for x in told
        ]
        wanted = [len(told) * each / sum(spread) for each in spread]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_equal_scores_weigh_nothing_and_only_the_order_and_distances_count():
    assert all(torch.equal(each, torch.ones_like(each)) for each in weights(torch.full_like(SCORES, -3.0)))
    torch.testing.assert_close(torch.cat(weights(7 * SCORES + 2)), torch.cat(weights()), atol=1e-6, rtol=1e-5)
    found = torch.cat(weights(SCORES.bfloat16()))
    torch.testing.assert_close(found, torch.cat(weights()), atol=0.02, rtol=0.02)


def test_a_process_whose_rows_are_all_bad_weighs_nothing():
    empty = {"pairs": {"row": ROW[:0]}, "token_fields": {"importance": SCORES[:0]}}
    made = TOKEN_WEIGHTERS.decode("importance")
    found = made(torch.empty(0), Context(empty, None, 1, 10))
    assert found.shape == (0,) and found.dtype is torch.float32
    whole = made(torch.ones(len(SCORES)), context(SCORES))
    assert whole.dtype is torch.float32


def test_a_loss_is_weighed_and_no_gradient_reaches_the_scores():
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(len(SCORES), 7, dtype=torch.float64, generator=random, requires_grad=True)
    labels = torch.randint(7, (len(SCORES),), generator=random)
    scores = SCORES.clone().requires_grad_()
    batch = context(scores, labels=labels).batch

    def loss(x, *weighters):
        terms = [{"objective": "cross_entropy", "weighters": list(weighters)}]
        task = TASKS.decode({"name": "generate", "token_terms": terms})
        return task.loss(TokenLogits(x, labels, ROW), batch, 1, 10).total

    each = -logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(loss(logits, "importance"), (each * torch.cat(weights())).sum())
    assert torch.autograd.grad(loss(logits, "importance"), [scores], allow_unused=True) == (None,)
    assert torch.autograd.gradcheck(lambda x: loss(x, "importance"), (logits,))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"low": 1.0}, "low and high must be 0 <= low < high"),
        ({"low": -0.1}, "low and high must be 0 <= low < high"),
        ({"high": math.inf}, "low and high must be 0 <= low < high"),
        ({"power": 0}, "power must be > 0"),
    ],
)
def test_bounds_that_are_none_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        TOKEN_WEIGHTERS.decode({"name": "importance", **fields})
