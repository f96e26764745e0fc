import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Largest, assert_same, batch, embeddings, gradients, leaves, losses_of
from vlalign.objectives.cacr import CACR
from vlalign.objectives.dcl import DCL
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings

CAPTIONS = [0, 1, 2, 0, 0, 1]
SEVERAL = {
    "data": batch(range(6), range(6), caption=(CAPTIONS, CAPTIONS)),
    "targets": Identity(same=("caption",)),
}
ALONE = {"data": batch(range(6), range(6)), "targets": Identity()}


def scored(scores: Tensor) -> Embeddings:
    """Embeddings whose cosines are these, so that the gradient by the queries is that by the scores."""
    one, none = torch.ones(1).double(), torch.zeros(1).double()
    return Embeddings(scores.clone().requires_grad_(), torch.eye(scores.shape[1]).double(), one, none)


def naive(cosines: Tensor, relevant: Tensor, cacr: CACR) -> Tensor:
    """One row at a time, with costs."""
    losses = []
    for row, wanted in zip(cosines, relevant, strict=True):
        near, far = (2 - 2 * row)[wanted], (2 - 2 * row)[~wanted]
        pull = (cacr.t_plus * near).exp() / sum(each.exp() for each in cacr.t_plus * near)
        push = (-cacr.t_minus * far).exp() / sum(each.exp() for each in -cacr.t_minus * far)
        if cacr.detached:
            pull, push = pull.detach(), push.detach()
        losses.append(cacr.alpha * (pull * near).sum() - cacr.beta * (push * far).sum())
    return torch.stack(losses)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("fields", [{}, {"t_plus": 0.3, "t_minus": 2.0, "alpha": 0.5, "beta": 3.0}])
def test_equals_a_loop(side, detached, fields):
    features, cacr = embeddings(6, 6), CACR(detached=detached, **fields)
    cosines = features.query @ features.key.T
    relevant = torch.tensor(CAPTIONS)[:, None] == torch.tensor(CAPTIONS)
    reference = naive(cosines if side == "query" else cosines.T, relevant, cacr)
    mine = losses_of(cacr, features, **SEVERAL, side=side)
    assert_same(mine.square().sum(), reference.square().sum(), features)


def test_the_gradient_is_right_by_finite_differences():
    def losses(*tensors: Tensor) -> Tensor:
        return losses_of(CACR(), Embeddings(*tensors), **SEVERAL)

    assert torch.autograd.gradcheck(losses, leaves(embeddings(6, 6)))


def test_one_positive_is_pulled_by_its_squared_distance():
    features = embeddings(6, 6)
    attraction = losses_of(CACR(beta=0.0, t_plus=5.0), features, **ALONE)
    torch.testing.assert_close(attraction, (features.query - features.key).square().sum(1))


def test_far_positives_and_near_negatives_weigh_more():
    features = scored(torch.tensor([[0.9, 0.1, -0.5, 0.8, 0.2, -0.9]]).double())
    data = batch([0], range(6), caption=([0], [0, 0, 0, 1, 1, 1]))
    loss = losses_of(
        CACR(detached=True, t_plus=0.7, t_minus=1.3), features, data, Identity(same=("caption",))
    )
    slope = torch.autograd.grad(loss.sum(), features.query)[0][0] / 2
    pull, push = -slope[:3], slope[3:]
    cost = 2 - 2 * features.query[0].detach()
    assert (pull.diff() > 0).all() and (push.diff() < 0).all()  # in the order of distance
    torch.testing.assert_close(pull, (0.7 * cost[:3]).softmax(0))
    torch.testing.assert_close(push, (-1.3 * cost[3:]).softmax(0))


@pytest.mark.parametrize("t_minus", [0.9, 2.0])
def test_detached_with_one_positive_it_has_the_gradient_of_dcl(t_minus):
    features = embeddings(6, 6)
    dcl = losses_of(DCL(temperature=1 / (2 * t_minus)), features, **ALONE).sum()
    reference = gradients(dcl / t_minus, features)
    for detached in (True, False):
        mine = gradients(
            losses_of(CACR(t_minus=t_minus, detached=detached), features, **ALONE).sum(), features
        )
        worst = max((x - y).abs().max() for x, y in zip(mine, reference, strict=True))
        assert worst < 1e-12 if detached else worst > 0.1


def test_without_temperature_the_means_are_uniform():
    features = embeddings(6, 6)
    cost = 2 - 2 * features.query @ features.key.T
    relevant = (torch.tensor(CAPTIONS)[:, None] == torch.tensor(CAPTIONS)).double()
    uniform = [(cost * each).sum(1) / each.sum(1) for each in (relevant, 1 - relevant)]
    mine = losses_of(CACR(t_plus=1e-7, t_minus=1e-7), features, **SEVERAL)
    torch.testing.assert_close(mine, uniform[0] - uniform[1], atol=1e-6, rtol=1e-6)


def test_a_rotation_of_both_sides_changes_nothing():
    features = embeddings(6, 6)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).double())[0]
    turned = Embeddings(features.query @ turn, features.key @ turn, features.scale, features.bias)
    torch.testing.assert_close(losses_of(CACR(), turned, **SEVERAL), losses_of(CACR(), features, **SEVERAL))


def test_rows_without_positives_or_negatives_are_zero():
    features = embeddings(3, 2)
    assert losses_of(CACR(), features, batch([0, 1, 90], range(2)), Identity())[2] == 0
    loss = losses_of(CACR(), embeddings(1, 1), batch([0], [0]), Identity())
    assert loss.tolist() == [0]


def test_bf16_rows_give_the_loss_of_their_fp32_cast():
    halves = embeddings(6, 6, dtype=torch.bfloat16)
    singles = Embeddings(*(x.detach().float() for x in leaves(halves)))
    assert torch.equal(losses_of(CACR(), halves, **SEVERAL), losses_of(CACR(), singles, **SEVERAL))
    doubles = Embeddings(*(x.double() for x in leaves(singles)))
    torch.testing.assert_close(
        losses_of(CACR(), singles, **SEVERAL).double(),
        losses_of(CACR(), doubles, **SEVERAL),
        atol=1e-5,
        rtol=1e-5,
    )


def test_it_never_forms_the_table():
    features, rows = embeddings(96, 96), range(96)
    with Largest() as largest:
        losses_of(CACR(), features, batch(rows, rows), Identity(), tile=(16, 24)).sum().backward()
    assert largest.numbers <= 96 * 4 * 2


@pytest.mark.parametrize(
    ("field", "bound"), [("t_plus", "> 0"), ("t_minus", "> 0"), ("alpha", ">= 0"), ("beta", ">= 0")]
)
def test_ranges(field, bound):
    with pytest.raises(ValueError, match=f"{field} must be {bound}, got -1"):
        CACR(**{field: -1.0})
