import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.unit.ops.worlds import batch, embeddings
from tests.unit.weighters.ranks import Some, context
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.types import Context, Embeddings
from vlalign.weighters.uncertainty import BOUND, Uncertainty

LOSSES = torch.tensor([0.2, 3.0, 1.1, 0.9, 2.0], dtype=torch.float64)
NEVER = Uncertainty(gamma=2.0)  # masks nothing


def head(seed: int = 0) -> nn.Module:
    """As if it had learnt."""
    torch.manual_seed(seed)
    module = Uncertainty().head(4).double()
    for p in module.parameters():
        nn.init.normal_(p, std=0.7)
    return module


def seen(module: nn.Module, rows: int = 5) -> Embeddings:
    return replace(embeddings(rows, rows), extras=dict(module.named_parameters()))


def naive(module, features: Embeddings, losses: Tensor, beta: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Weights and lessons, a pair at a time."""
    size = math.sqrt(sum(float(loss) ** 2 for loss in losses) / len(losses))
    weights, lessons = [], []
    for query, key, loss in zip(features.query, features.key, losses, strict=True):
        a, b = (
            BOUND * torch.tanh(side(x[None]).squeeze() / BOUND)
            for side, x in ((module.query, query), (module.key, key))
        )
        variance, relative = (a.exp() + b.exp()) / 2, loss / size
        doubt = 1 - torch.exp(-beta * (relative - variance.sqrt()).abs() / variance.sqrt())
        weights.append(1 - doubt if doubt < gamma else 0 * doubt)
        lessons.append(relative**2 / variance + variance.log())
    return torch.stack(weights), torch.stack(lessons)


@pytest.mark.parametrize(("beta", "gamma"), [(0.6, 0.6), (2.0, 0.3), (0.6, 2.0)])
def test_equals_a_loop(beta, gamma):
    module = head()
    features, how = seen(module), Uncertainty(beta=beta, gamma=gamma)
    given = context(LOSSES, features=features)
    weights, lessons = naive(module, features, LOSSES, beta, gamma)
    torch.testing.assert_close(how(LOSSES, given), weights.detach())
    torch.testing.assert_close(how.lesson(LOSSES, given), lessons)
    parameters = list(module.parameters())
    mine = torch.autograd.grad(how.lesson(LOSSES, given).sum(), parameters)
    for slope, other in zip(mine, torch.autograd.grad(lessons.sum(), parameters), strict=True):
        torch.testing.assert_close(slope, other)


def test_gradcheck_of_the_lesson_by_the_head():
    module, losses = head(), LOSSES[:3]
    names, parameters = zip(*module.named_parameters(), strict=True)

    def lesson(*values: Tensor) -> Tensor:
        features = replace(embeddings(3, 3), extras=dict(zip(names, values, strict=True)))
        return Uncertainty().lesson(losses, context(losses, features=features))

    assert torch.autograd.gradcheck(lesson, parameters, fast_mode=True)


def test_the_likelihood_is_best_where_the_variance_is_the_squared_loss():
    """Along the bias of a head that says the same of every pair: s^2 = l^2 for one, its mean for several."""
    for losses in (LOSSES[:1], LOSSES):
        module = Uncertainty().head(4).double()
        features = seen(module, len(losses))
        relative = losses / losses.square().mean().sqrt()
        assert float(relative.square().mean()) == pytest.approx(1)  # so s = 1, where the head begins
        lesson = Uncertainty().lesson(losses, context(losses, features=features)).sum()
        biases = [module.query[3].bias, module.key[3].bias]
        assert all(slope.abs() < 1e-12 for slope in torch.autograd.grad(lesson, biases))
        for off in (-0.3, 0.3):
            for bias in biases:
                nn.init.constant_(bias, off)
            worse = Uncertainty().lesson(losses, context(losses, features=seen(module, len(losses)))).sum()
            assert worse > lesson


def test_a_head_that_learns_expects_the_size_of_losses():
    """Two kinds of pairs, told apart by their embeddings."""
    torch.manual_seed(0)
    kind = torch.arange(64) % 2
    sides = nn.functional.one_hot(kind, 4).double()
    losses = torch.where(kind == 0, 0.5, 2.0).double()
    module = Uncertainty().head(4).double()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
    one = torch.ones(1, dtype=torch.float64)
    for _ in range(60):
        features = Embeddings(sides, sides, one, one, dict(module.named_parameters()))
        given = context(losses, features=features)
        optimizer.zero_grad()
        Uncertainty().lesson(losses, given).mean().backward()
        optimizer.step()
    expected = losses / losses.square().mean().sqrt()
    torch.testing.assert_close(
        (Uncertainty().log_variance(given) / 2).exp().detach(), expected, atol=0.02, rtol=0
    )
    assert (Uncertainty()(losses, given) > 0.97).all()
    swapped = losses.clone()
    swapped[0] = 2.0  # a pair that is unlike its kind: 4 times what it lets expect
    assert Uncertainty()(swapped, given)[0] == 0


def test_no_doubt_and_no_mask_is_the_identity():
    given = context(LOSSES, features=seen(head()))
    assert Uncertainty(beta=0.0, gamma=1.5)(LOSSES, given).tolist() == [1] * 5
    equal = torch.full((5,), 2.5, dtype=torch.float64)  # as expected by a head that has not learnt
    expected = context(equal, features=seen(Uncertainty().head(4).double()))
    torch.testing.assert_close(NEVER(equal, expected), torch.ones_like(equal))


def test_weights_fall_with_the_disagreement_and_end_at_gamma():
    losses = torch.linspace(0, 12, 61, dtype=torch.float64)
    given = context(losses, features=seen(Uncertainty().head(4).double(), 61))
    relative = losses / losses.square().mean().sqrt()
    order = (relative - 1).abs().argsort()
    free, masked = NEVER(losses, given), Uncertainty(gamma=0.4)(losses, given)
    assert (free[order].diff() < 1e-12).all() and ((free > 0) & (free <= 1)).all()
    kept = 1 - free < 0.4
    assert 0 < kept.sum() < 61 and torch.equal(masked[kept], free[kept]) and (masked[~kept] == 0).all()


def test_by_default_only_losses_above_two_and_a_half_times_the_expected_are_left_out():
    losses = torch.ones(200, dtype=torch.float64)
    losses[0], losses[1], losses[2] = 0.0, 2.45, 2.7
    given = context(losses, features=seen(Uncertainty().head(4).double(), 200))
    weights = Uncertainty()(losses, given)
    assert weights[2] == 0 and (weights[[0, 1, 3]] > 0).all()


def test_all_masked_is_zero_and_finite():
    for losses in (LOSSES, torch.zeros(5, dtype=torch.float64)):
        weights = Uncertainty(beta=50.0, gamma=1e-6)(losses, context(losses, features=seen(head())))
        assert torch.equal(weights, torch.zeros(5, dtype=torch.float64))


def test_sizes_of_losses_do_not_matter_and_losses_below_zero_are_easy_ones():
    given = context(LOSSES, features=seen(head()))
    torch.testing.assert_close(Uncertainty()(LOSSES * 40, given), Uncertainty()(LOSSES, given))
    below = LOSSES.clone()
    below[0] = -3.0
    at_zero = below.clamp(min=0)
    torch.testing.assert_close(NEVER(below, given), NEVER(at_zero, given))


def test_rows_that_are_not_valid_teach_nothing_and_do_not_count():
    valid = torch.tensor([True, True, False, True, True])
    features = seen(head())
    lesson = Uncertainty().lesson(LOSSES, context(LOSSES, valid, features=features))
    own = Uncertainty().lesson(
        LOSSES[valid],
        context(
            LOSSES[valid], features=replace(features, query=features.query[valid], key=features.key[valid])
        ),
    )
    assert lesson[2] == 0
    torch.testing.assert_close(lesson[valid], own)


def test_losses_are_compared_with_those_of_every_rank():
    features, how = seen(head()), Uncertainty()
    whole = how(LOSSES, context(LOSSES, features=features))
    part = replace(features, query=features.query[:2], key=features.key[:2])
    rows = Some(torch.ones(2, dtype=torch.bool), [LOSSES])
    torch.testing.assert_close(how(LOSSES[:2], Context({}, rows, 1, 9, part)), whole[:2])


def test_through_the_task_the_lesson_reaches_the_head_and_the_embeddings_do_not_hear_it():
    data, features = batch(range(5), range(5)), embeddings(5, 5)
    how = Uncertainty()
    task = Align(targets=Identity(), terms=(Term(objective=InfoNCE(), weighters=(how,)),))
    ((name, module),) = task.heads(4).items()
    torch.manual_seed(1)
    for p in module.double().parameters():
        nn.init.normal_(p, std=0.7)
    extras = {f"{name}.{own}": p for own, p in module.named_parameters()}
    loss = task.loss(replace(features, extras=extras), data, 1, 1).total
    slopes = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
    assert all(slope.abs().max() > 0 for slope in slopes[-2:])
    fixed = {key: x.detach() for key, x in extras.items()}
    same = torch.autograd.grad(
        task.loss(replace(features, extras=fixed), data, 1, 1).total, [features.query, features.key]
    )
    for slope, other in zip(torch.autograd.grad(loss, [features.query, features.key]), same, strict=True):
        torch.testing.assert_close(slope, other)


def test_bf16_features_are_read_in_float32():
    module = head().float()
    wide = replace(embeddings(5, 5, dtype=torch.float32), extras=dict(module.named_parameters()))
    narrow = replace(wide, query=wide.query.bfloat16(), key=wide.key.bfloat16())
    losses = LOSSES.float()
    weights = NEVER(losses, context(losses, features=narrow))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, NEVER(losses, context(losses, features=wide)), atol=0.02, rtol=0.02)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"beta must be >= 0, got -1.0"):
        Uncertainty(beta=-1.0)
    with pytest.raises(ValueError, match=r"gamma must be > 0, got 0.0"):
        Uncertainty(gamma=0.0)
    with pytest.raises(ValueError, match="reads the embeddings of pairs"):
        Uncertainty()(LOSSES, context(LOSSES))
