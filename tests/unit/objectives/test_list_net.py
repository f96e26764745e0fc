import math

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import (
    LABELS,
    SCORES,
    assert_equals_loop,
    assert_gradient,
    assert_near_in_bf16,
    grouped,
    row,
)
from tests.unit.ops.worlds import batch, embeddings, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.kl import KL
from vlalign.objectives.list_net import ListNet
from vlalign.supervision.targets.identity import Identity


def naive(scores: Tensor, targets: Tensor, temperature: float, target_temperature: float) -> Tensor:
    """One candidate at a time; 0 where all have one grade."""
    if len(set(targets.tolist())) < 2:
        return 0 * scores.sum()
    top = [[(x / t).exp() for x in row] for row, t in ((scores, temperature), (targets, target_temperature))]
    return -sum(q / sum(top[1]) * (p / sum(top[0])).log() for p, q in zip(*top, strict=True))


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.4, 2.0), (3.0, 0.2)])
def test_equals_a_loop(temperatures):
    objective = ListNet(temperature=temperatures[0], target_temperature=temperatures[1])
    assert_equals_loop(objective, lambda *each: naive(*each, *temperatures))


def test_the_gradient_is_right_by_finite_differences():
    assert_gradient(ListNet(temperature=0.7, target_temperature=0.4))


def test_equal_scores_cost_the_log_of_their_number():
    assert row(ListNet(), [0.3] * 5, [2, 1, 1, 0, 0]).item() == pytest.approx(math.log(5))


def test_relevance_as_scores_is_the_best():
    scores = torch.tensor([2.0, 1.0, 0.5, 0.0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.grad(row(ListNet(), scores, scores.detach()), scores)[0].abs().max() < 1e-12
    assert row(ListNet(), scores, scores.detach()) < row(ListNet(), 1.1 * scores, scores.detach())


def test_a_positive_has_a_share_e_times_that_of_a_negative():
    scores = torch.zeros(3, dtype=torch.float64).requires_grad_()
    slope = torch.autograd.grad(row(ListNet(), scores, [1, 0, 0]), scores)[0]
    shares = 1 / 3 - slope
    torch.testing.assert_close(shares[0] / shares[1:], torch.full((2,), math.e).double())


def test_a_small_target_temperature_gives_info_nce():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    mine = losses_of(ListNet(target_temperature=1e-3), features, data, Identity())
    torch.testing.assert_close(mine, losses_of(InfoNCE(), features, data, Identity()))


def test_its_gradient_is_that_of_kl_where_grades_differ():
    scores = SCORES.clone().requires_grad_()
    mine, other = (
        torch.autograd.grad(grouped(each, scores)[[0, 4, 5]].sum(), scores)[0] for each in (ListNet(), KL())
    )
    torch.testing.assert_close(mine, other)
    assert LABELS[mine != 0].unique().numel() > 3


def test_bf16_rows_are_near_fp64():
    assert_near_in_bf16(ListNet())


@pytest.mark.parametrize("field", ["temperature", "target_temperature"])
def test_ranges(field):
    with pytest.raises(ValueError, match=f"^{field} must be > 0, got 0"):
        ListNet(**{field: 0.0})
