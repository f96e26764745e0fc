from itertools import combinations

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import assert_equals_loop, assert_gradient, assert_near_in_bf16, row
from vlalign.objectives.margin_mse import MarginMSE


def naive(scores: Tensor, targets: Tensor, scale: float) -> Tensor:
    """One pair at a time."""
    losses = [
        ((scores[i] - scores[j]) - scale * (targets[i] - targets[j])) ** 2
        for i, j in combinations(range(len(scores)), 2)
    ]
    return sum(losses) / len(losses) if losses else 0 * scores.sum()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_equals_a_loop(scale):
    assert_equals_loop(MarginMSE(scale=scale), lambda *each: naive(*each, scale))


def test_the_gradient_is_right_by_finite_differences():
    assert_gradient(MarginMSE(scale=3.0))


def test_one_pair_is_the_papers():
    assert row(MarginMSE(), [2.0, 0.5], [4.0, 1.0]).item() == pytest.approx((1.5 - 3) ** 2)


def test_it_is_twice_the_variance_of_the_errors():
    generator = torch.Generator().manual_seed(0)
    scores, targets = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(row(MarginMSE(scale=0.5), scores, targets), 2 * (scores - targets / 2).var())


def test_a_constant_difference_from_the_teacher_is_zero():
    targets = torch.tensor([3.0, -1.0, 0.25, 0.25]).double()
    assert row(MarginMSE(scale=2.0), 2 * targets + 5, targets) < 1e-24
    assert row(MarginMSE(scale=2.0), targets, targets) > 1


def test_numbers_far_from_zero_lose_no_digits():
    scores, targets = torch.tensor([[1e4, 1e4 + 1]]), torch.tensor([[0.0, 3.0]])
    errors = scores - targets
    assert errors.diff().square().item() == row(MarginMSE(), scores[0], targets[0]).item() == 4


def test_bf16_rows_are_near_fp64():
    assert_near_in_bf16(MarginMSE())


def test_ranges():
    with pytest.raises(ValueError, match="scale must be > 0, got -1"):
        MarginMSE(scale=-1.0)
