import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import assert_equals_loop, assert_gradient, assert_near_in_bf16, row
from tests.unit.ops.worlds import batch, embeddings, losses_of
from vlalign.objectives.pairwise_logistic import PairwiseLogistic
from vlalign.objectives.rank_net import RankNet
from vlalign.supervision.targets.identity import Identity


def naive(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """One pair at a time."""
    losses = [
        (1 + (-(scores[i] - scores[j]) / temperature).exp()).log()
        for i, j in permutations(range(len(scores)), 2)
        if targets[i] > targets[j]
    ]
    return sum(losses) / len(losses) if losses else 0 * scores.sum()


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_a_loop(temperature):
    objective = RankNet(temperature=temperature)
    assert_equals_loop(objective, lambda *each: naive(*each, temperature))


def test_the_gradient_is_right_by_finite_differences():
    assert_gradient(RankNet(temperature=0.7))


def test_equal_scores_cost_log_two():
    assert row(RankNet(), [0.3] * 4, [2, 1, 1, 0]).item() == pytest.approx(math.log(2))


def test_grades_count_by_their_order_alone():
    scores = [0.2, -1.0, 0.7, 0.1]
    assert row(RankNet(), scores, [3, 1, 0, 1]) == row(RankNet(), scores, [0.9, 0.2, -5, 0.2])


def test_a_small_temperature_gives_the_mean_hinge():
    loss = 1e-6 * row(RankNet(temperature=1e-6), [0.2, 0.5, -1.0], [1, 0, 0])
    assert loss.item() == pytest.approx(0.3 / 2)


def test_with_one_positive_it_is_pairwise_logistic():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    mine, other = (losses_of(each, features, data, Identity()) for each in (RankNet(), PairwiseLogistic()))
    torch.testing.assert_close(mine, other)


def test_bf16_rows_are_near_fp64():
    assert_near_in_bf16(RankNet())


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        RankNet(temperature=-1.0)
