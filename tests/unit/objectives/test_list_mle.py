import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import assert_equals_loop, assert_gradient, assert_near_in_bf16, row
from tests.unit.ops.worlds import batch, embeddings, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.list_mle import ListMLE
from vlalign.supervision.targets.identity import Identity

CAPTIONS = [0, 1, 2, 0, 3, 0, 1]


def naive(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """One choice at a time."""
    losses = []
    for score, target in zip(scores, targets, strict=True):
        if target > targets.min():
            against = sum(
                (s / temperature).exp() for s, t in zip(scores, targets, strict=True) if t <= target
            )
            losses.append(against.log() - score / temperature)
    return sum(losses) / len(losses) if losses else 0 * scores.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_a_loop(temperature):
    objective = ListMLE(temperature=temperature)
    assert_equals_loop(objective, lambda *each: naive(*each, temperature))


def test_the_gradient_is_right_by_finite_differences():
    assert_gradient(ListMLE(temperature=0.7))


def test_without_ties_it_is_a_likelihood_of_orders():
    scores = torch.tensor([0.4, -1.0, 0.9, 0.2]).double()
    orders = list(permutations([3.0, 2.0, 1.0, 0.0]))
    total = sum(math.exp(-3 * row(ListMLE(), scores, list(order))) for order in orders)
    assert total == pytest.approx(1)


def test_labels_of_yes_and_no_give_info_nce():
    features, targets = embeddings(7, 7), Identity(same=("caption",))
    data = batch(range(7), range(7), caption=(CAPTIONS, CAPTIONS))
    for side in ("query", "key"):
        mine, other = (losses_of(each, features, data, targets, side) for each in (ListMLE(), InfoNCE()))
        torch.testing.assert_close(mine, other)


def test_equal_scores_cost_the_mean_log_of_how_many_are_left():
    wanted = (math.log(5) + math.log(4) + math.log(3) + math.log(2)) / 4
    assert row(ListMLE(), [0.3] * 5, [4, 3, 2, 1, 0]).item() == pytest.approx(wanted)
    tied = (2 * math.log(5) + math.log(3)) / 3
    assert row(ListMLE(), [0.3] * 5, [2, 2, 1, 0, 0]).item() == pytest.approx(tied)


def test_only_the_order_of_relevance_counts():
    scores = [0.2, -1.0, 0.7, 0.1]
    assert row(ListMLE(), scores, [3, 1, 0, 1]) == row(ListMLE(), scores, [0.9, 0.2, -5, 0.2])


def test_the_best_is_pulled_and_the_lowest_are_pushed():
    scores = torch.tensor([0.4, -1.0, 0.9, 0.2, 0.0]).double().requires_grad_()
    slope = torch.autograd.grad(row(ListMLE(), scores, [2, 1, 1, 0, 0]), scores)[0]
    assert slope[0] < 0 and (slope[3:] > 0).all()


def test_bf16_rows_are_near_fp64():
    assert_near_in_bf16(ListMLE())


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        ListMLE(temperature=-1.0)
