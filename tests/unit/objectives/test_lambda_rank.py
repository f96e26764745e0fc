import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import assert_equals_loop, assert_gradient, assert_near_in_bf16, row
from vlalign.objectives.lambda_rank import LambdaRank

FIELDS = [{}, {"gain": "linear"}, {"k": 2}, {"gain": "linear", "k": 1, "temperature": 0.4}]


def gain_of(objective: LambdaRank, target: float) -> float:
    target = max(target, 0.0)
    return 2**target - 1 if objective.gain == "exponential" else target


def dcg(objective: LambdaRank, targets: list[float]) -> float:
    """Of relevance in the order of ranks."""
    ranked = targets if objective.k is None else targets[: objective.k]
    return sum(gain_of(objective, target) / math.log2(1 + rank) for rank, target in enumerate(ranked, 1))


def naive(scores: Tensor, targets: Tensor, objective: LambdaRank) -> Tensor:
    """One swap at a time, NDCG formed anew; scores have no ties."""
    order = scores.argsort(descending=True).tolist()
    ranked = [targets[i].item() for i in order]
    best, loss = dcg(objective, sorted(ranked, reverse=True)), 0 * scores.sum()
    for a, b in permutations(range(len(order)), 2):
        if ranked[a] > ranked[b] and best > 0:
            swapped = list(ranked)
            swapped[a], swapped[b] = ranked[b], ranked[a]
            change = abs(dcg(objective, swapped) - dcg(objective, ranked)) / best
            gap = (scores[order[a]] - scores[order[b]]) / objective.temperature
            loss = loss + change * (1 + (-gap).exp()).log()
    return loss


@pytest.mark.parametrize("fields", FIELDS)
def test_equals_a_loop_of_swaps(fields):
    objective = LambdaRank(**fields)
    assert_equals_loop(objective, lambda *each: naive(*each, objective))


@pytest.mark.parametrize("fields", FIELDS)
def test_the_gradient_is_right_by_finite_differences(fields):
    assert_gradient(LambdaRank(**fields))


def test_among_equal_scores_the_less_relevant_come_first():
    one = row(LambdaRank(), [0.3] * 4, [0, 1, 0, 0])
    assert one.item() == pytest.approx(  # at rank 4, and the others at 2, their mean
        3 * math.log(2) * (1 / math.log2(3) - 1 / math.log2(5))
    )


def test_beyond_k_nothing_is_told_apart():
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]).double().requires_grad_()
    slope = torch.autograd.grad(row(LambdaRank(k=2), scores, [0, 0, 0, 0, 1]), scores)[0]
    assert slope[2:4].eq(0).all() and (slope[:2] > 0).all() and slope[4] < 0


def test_the_top_of_a_ranking_matters_most():
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0]).double()

    def swapped(at: int) -> Tensor:
        """A ranking that is right but for two neighbours, in one pair of grades."""
        targets = [1.0] * at + [0.5, 1.0] + [0.0] * (2 - at)
        return row(LambdaRank(temperature=1e-3), scores, targets)

    assert swapped(0) > swapped(1) > swapped(2) > 0


def test_it_is_near_zero_where_the_order_is_right_and_scores_are_far_apart():
    assert row(LambdaRank(temperature=1e-2), [3, 2, 1, 0], [3, 2, 1, 0]) < 1e-12


def test_exponential_gain_of_large_numbers_is_finite():
    scores, targets = [0.1, 0.4, -0.2], [5000.0, 4998.0, 3.0]
    assert 0.1 < row(LambdaRank(), scores, targets) < 10
    assert row(LambdaRank(), scores, [100.0, 98.0, 3.0]) == pytest.approx(row(LambdaRank(), scores, targets))


def test_below_zero_there_is_no_gain():
    scores = [0.1, 0.4, -0.2]
    assert row(LambdaRank(), scores, [1, -3, -2]) == row(LambdaRank(), scores, [1, 0, 0])
    assert row(LambdaRank(), scores, [-1, -3, -2]) == 0


def test_bf16_rows_are_near_fp64():
    assert_near_in_bf16(LambdaRank())


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        LambdaRank(temperature=0.0)
    with pytest.raises(ValueError, match="k must be >= 1, got 0"):
        LambdaRank(k=0)
