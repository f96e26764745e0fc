"""Weights of a caption's tokens by a reference's probabilities, against a loop in fp64."""

import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from vlalign.registry import TASKS, TOKEN_WEIGHTERS
from vlalign.types import Context, TokenLogits
from vlalign.weighters.token.prior import Prior

LENGTHS = [1, 5, 2, 3, 1, 4]


def made(lengths=LENGTHS, seed=0):
    """Log-probabilities of each caption's tokens, from sure to hopeless, and their tokens."""
    random = torch.Generator().manual_seed(seed)
    told = [-torch.rand(count, generator=random).exp().pow(4) + 0.9 for count in lengths]
    return [each.clamp(max=-1e-4) for each in told], [
        torch.randint(99, (n,), generator=random) for n in lengths
    ]


def context(logprobs, labels, step=1):
    row = torch.arange(len(logprobs)).repeat_interleave(torch.tensor([len(each) for each in logprobs]))
    pairs = {"row": row, "labels": torch.cat(labels)}
    batch = {"pairs": pairs, "token_fields": {"log_probability": torch.cat(logprobs)}, "ids": []}
    return Context(batch, None, step, 10)


def weights(logprobs, labels=None, step=1, **fields):
    """Of each caption."""
    labels = labels or [torch.zeros(len(each), dtype=torch.int64) for each in logprobs]
    told = context(logprobs, labels, step)
    found = Prior(**fields)(torch.ones(sum(map(len, logprobs))), told)
    return found.split([len(each) for each in logprobs])


def loop(logprobs, alpha):
    """The formula as it is written: k w_t / sum_j w_j."""
    raised = [(1 - math.exp(x)) ** alpha for x in logprobs.tolist()]
    return [len(raised) * each / sum(raised) for each in raised]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 5.0])
def test_weights_are_those_of_a_loop(alpha):
    logprobs, _ = made()
    for own, found in zip(logprobs, weights(logprobs, alpha=alpha), strict=True):
        wanted = torch.tensor(loop(own.double(), alpha))
        torch.testing.assert_close(found, wanted.float(), atol=1e-6, rtol=1e-4)
        assert float(found.mean()) == pytest.approx(1, abs=1e-6)
        order = own.argsort()
        assert (found[order].diff() <= 0).all() and len(set(found.tolist())) == len(set(own.tolist()))


def test_the_defaults_are_the_papers():
    assert TOKEN_WEIGHTERS.decode("prior") == Prior(alpha=1.0, shuffled=False)


def test_alpha_0_and_a_constant_reference_weigh_nothing():
    logprobs, _ = made()
    for found in weights([*logprobs, torch.zeros(3)], alpha=0.0):
        assert torch.equal(found, torch.ones_like(found))
    for found in weights([torch.full((n,), -0.7) for n in LENGTHS]):
        torch.testing.assert_close(found, torch.ones_like(found))


def test_who_is_sure_of_all_weighs_all_alike_and_nothing_is_lost_to_rounding():
    sure, nearly = torch.zeros(4), torch.tensor([-1e-9, -2e-9, -0.0, -4e-9])
    rounded = torch.tensor([1e-7, -0.5])  # a sum that rounding lifted above 0
    found = weights([sure, nearly, rounded])
    assert torch.equal(found[0], torch.ones(4))
    torch.testing.assert_close(found[1], torch.tensor([1.0, 2.0, 0.0, 4.0]) * 4 / 7)
    torch.testing.assert_close(found[2], torch.tensor([0.0, 2.0]))
    steep = weights([torch.tensor([-1e-3, -2e-3, -2e-3])], alpha=50.0)[0]  # (1e-3)^50 is no float32
    torch.testing.assert_close(steep, torch.tensor([0.0, 1.5, 1.5]))
    lost = weights([torch.tensor([-torch.inf, -torch.inf, 0.0])])[0]
    torch.testing.assert_close(lost, torch.tensor([1.5, 1.5, 0.0]))


def test_a_scale_of_all_misses_changes_nothing():
    miss = torch.tensor([0.1, 0.4, 0.25], dtype=torch.float64)
    one, other = (weights([torch.log1p(-scale * miss).float()])[0] for scale in (1.0, 2.0))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_a_captions_weights_are_its_own_in_any_company_and_order():
    logprobs, labels = made()
    whole = weights(logprobs, labels)
    for own, told, found in zip(logprobs, labels, whole, strict=True):
        torch.testing.assert_close(weights([own], [told])[0], found)
    turned = weights(logprobs[::-1], labels[::-1])[::-1]
    for one, other in zip(whole, turned, strict=True):
        torch.testing.assert_close(one, other)


def test_shuffled_weights_stay_in_their_caption_and_depend_on_it_and_the_step():
    logprobs, labels = made([6, 7, 8, 1])
    plain = weights(logprobs, labels)
    dealt = weights(logprobs, labels, shuffled=True)
    for one, other in zip(plain, dealt, strict=True):
        assert sorted(one.tolist()) == sorted(other.tolist())
    assert any(not torch.equal(one, other) for one, other in zip(plain, dealt, strict=True))
    for at in range(4):  # whatever chunk it is in
        alone = weights(logprobs[at : at + 1], labels[at : at + 1], shuffled=True)[0]
        torch.testing.assert_close(alone, dealt[at])
    again, later = (weights(logprobs, labels, step, shuffled=True) for step in (1, 2))
    assert all(torch.equal(one, other) for one, other in zip(again, dealt, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(later, dealt, strict=True))


def test_in_a_task_it_multiplies_losses_and_has_no_gradient():
    logprobs, labels = made()
    told = context([each.clone().requires_grad_() for each in logprobs], labels)
    torch.manual_seed(0)
    logits = torch.randn(sum(LENGTHS), 99, dtype=torch.float64, requires_grad=True)
    features = TokenLogits(logits, torch.cat(labels), told.batch["pairs"]["row"])

    def task(*weighters, objective="cross_entropy"):
        terms = [{"objective": objective, "weighters": list(weighters)}]
        return TASKS.decode({"name": "generate", "token_terms": terms})

    def loss(made):
        return made.loss(features, told.batch, 1, 10).total

    found = loss(task("prior"))
    each = -logits.log_softmax(1).gather(1, features.labels[:, None])[:, 0]
    wanted = (each * torch.cat(weights(logprobs, labels))).sum()
    torch.testing.assert_close(found, wanted)
    reference = told.batch["token_fields"]["log_probability"]
    [gradient] = torch.autograd.grad(found, [reference], allow_unused=True)
    assert gradient is None
    plain, flat = loss(task()), loss(task({"name": "prior", "alpha": 0.0}))
    assert torch.equal(plain, flat)
    twice = (each * torch.cat(weights(logprobs, labels)) ** 2).sum()
    torch.testing.assert_close(loss(task("prior", "prior")), twice)
    assert torch.autograd.gradcheck(
        lambda x: task("prior").loss(replace(features, logits=x), told.batch, 1, 10).total, (logits,)
    )
    assert task("prior").reads_token_fields == ("log_probability",) and task().reads_token_fields == ()
    features = TokenLogits(logits.bfloat16(), features.labels, features.row)
    assert loss(task("prior")).item() == pytest.approx(wanted.item(), rel=0.02)


@pytest.mark.parametrize("alpha", [-0.1, math.nan, math.inf])
def test_an_alpha_that_is_none_is_refused(alpha):
    with pytest.raises((ValidationError, ValueError), match="alpha must be >= 0 and finite"):
        Prior(alpha=alpha)
