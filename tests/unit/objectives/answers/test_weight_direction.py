from itertools import product

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from tests.unit.objectives.answers.worlds import LABELS, MASK, answers, logits
from vlalign.objectives.answers.weight_direction import WeightDirection

WEIGHTS = ("sft", "cl", "constant", "constant_masked")
WAYS = list(product(WEIGHTS, ("sft", "cl")))
ONE = LABELS.clone()
ONE[1, 2] = 0  # at most one positive a query, as in the paper


def slopes(loss, yes, no):
    return torch.autograd.grad(loss.sum(), (yes, no), allow_unused=True, materialize_grads=True)


def naive(weight, direction, yes, no, labels, margin=0.1):
    """The surrogate of one query's candidates, a weight at a time."""
    loss = 0 * yes.sum()
    positive = next((i for i, label in enumerate(labels) if label > 0), None)
    for i, label in enumerate(labels):
        with torch.no_grad():
            right = 1 if label > 0 else -1
            certain = 1 / (1 + (-right * (yes[i] - no[i])).exp())
            if weight == "cl":
                share = yes[i].exp() / sum(y.exp() for y in yes)
                size = (1 - share if label > 0 else share) if positive is not None and len(yes) > 1 else 0.0
            else:
                size = {"sft": 1 - certain, "constant": 1.0, "constant_masked": float(certain <= 1 - margin)}[
                    weight
                ]
        along = yes[i] - no[i] if direction == "sft" else yes[i]
        loss = loss + (-size if label > 0 else size) * along
    return loss


@pytest.mark.parametrize(("weight", "direction"), WAYS)
def test_equals_a_loop(weight, direction):
    yes, no = logits()
    losses = WeightDirection(weight=weight, direction=direction)(answers(yes, no, target=ONE))
    loop = [
        naive(weight, direction, yes[q][MASK[q]], no[q][MASK[q]], ONE[q][MASK[q]]) for q in range(len(yes))
    ]
    torch.testing.assert_close(losses, torch.stack(loop))
    for mine, other in zip(slopes(losses, yes, no), slopes(torch.stack(loop), yes, no), strict=True):
        torch.testing.assert_close(mine, other)


def test_14_sft_along_sft_is_the_summed_cross_entropy_of_yes_and_no():
    yes, no = logits()
    mine = slopes(WeightDirection()(answers(yes, no)), yes, no)
    each = binary_cross_entropy_with_logits(yes - no, (LABELS > 0).double(), reduction="none")
    for a, b in zip(mine, slopes((each * MASK).sum(), yes, no), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("labels", [LABELS, ONE], ids=["several", "one"])
def test_14_cl_along_cl_is_info_nce_of_yes(temperature, labels):
    yes, no = logits()
    objective = WeightDirection(weight="cl", direction="cl", temperature=temperature)
    mine = slopes(objective(answers(yes, no, target=labels)), yes, no)
    logs = (yes / temperature).masked_fill(~MASK, -torch.inf)
    some = labels.sum(1) > 0
    losses = -(labels * logs.log_softmax(1).masked_fill(~MASK, 0))[some].sum(1) / labels[some].sum(1)
    for a, b in zip(mine, slopes(losses, yes, no), strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=0)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_along_cl_the_no_learns_nothing(weight):
    yes, no = logits()
    _, slope = slopes(WeightDirection(weight=weight, direction="cl")(answers(yes, no)), yes, no)
    assert slope.abs().max() == 0


def test_weights_of_cl_are_coupled_and_those_of_sft_are_not():
    yes, no = logits()
    cl, sft = WeightDirection(weight="cl"), WeightDirection()
    seen = cl.notes(answers(yes, no, target=ONE))
    with_positive = ONE.sum(1) > 0
    torch.testing.assert_close(seen["negative_weight"][with_positive], seen["positive_weight"][with_positive])
    fewer = MASK.clone()
    fewer[0, 3] = False
    more, less = (
        {
            name: each.weights(answers(yes, no, target=ONE, mask=mask))[0]
            for name, each in (("cl", cl), ("sft", sft))
        }
        for mask in (MASK, fewer)
    )
    assert (more["sft"][:3] == less["sft"][:3]).all()
    assert (more["cl"][1:3] < less["cl"][1:3]).all() and more["cl"][0] > less["cl"][0]


def test_weights_lie_between_0_and_1_and_are_0_where_there_is_no_candidate():
    yes, no = logits()
    for weight in WEIGHTS:
        found = WeightDirection(weight=weight).weights(answers(yes, no, target=ONE))
        assert ((found >= 0) & (found <= 1)).all() and (found[~MASK] == 0).all()
        assert not found.requires_grad


def test_one_negative_under_cl_is_pairwise_logistic():
    yes = torch.tensor([[0.3, -0.8]], dtype=torch.float64, requires_grad=True)
    no, label, mask = torch.zeros(1, 2).double(), torch.tensor([[1, 0]]), torch.ones(1, 2, dtype=torch.bool)
    cl = WeightDirection(weight="cl", direction="cl")(answers(yes, no, target=label, mask=mask))
    (mine,) = torch.autograd.grad(cl.sum(), yes)
    (other,) = torch.autograd.grad(softplus(yes[:, 1] - yes[:, 0]).sum(), yes)
    torch.testing.assert_close(mine, other)


def test_the_mask_lets_go_of_what_is_certain():
    yes = torch.tensor([[3.0, 2.0, -3.0, 0.0]])
    one = answers(yes, torch.zeros(1, 4), target=torch.tensor([[1, 1, 0, 0]]), mask=torch.ones(1, 4) > 0)
    assert WeightDirection(weight="constant_masked", margin=0.1).weights(one).tolist() == [[0, 1, 0, 1]]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_normalised_weights_add_up_to_one(weight):
    yes, no = logits()
    found = WeightDirection(weight=weight, normalised=True).weights(answers(yes, no, target=ONE))
    assert found.sum(1)[:2].tolist() == pytest.approx([1, 1]) and found.isfinite().all()


def test_ranges():
    with pytest.raises(ValueError, match="margin must be between 0 and 1, got 1"):
        WeightDirection(margin=1)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        WeightDirection(temperature=0)
