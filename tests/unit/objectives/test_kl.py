import math

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import assert_equals_loop, assert_gradient, assert_near_in_bf16, row
from tests.unit.ops.worlds import batch, embeddings, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.kl import KL
from vlalign.supervision.targets.identity import Identity

DIRECTIONS = ["forward", "reverse", "symmetric"]
EACH = pytest.mark.parametrize("direction", DIRECTIONS)


def naive(scores: Tensor, targets: Tensor, objective: KL) -> Tensor:
    """One candidate at a time."""
    rows = ((scores, objective.temperature), (targets, objective.target_temperature))
    raised = [[(x / temperature).exp() for x in row] for row, temperature in rows]
    student, teacher = ([x / sum(each) for x in each] for each in raised)

    def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
        return sum((x * (x / y).log() for x, y in zip(p, q, strict=True)), 0 * scores.sum())

    forward, reverse = divergence(teacher, student), divergence(student, teacher)
    return {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}[objective.direction]


@EACH
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.4, 2.0)])
def test_equals_a_loop(direction, temperatures):
    objective = KL(direction=direction, temperature=temperatures[0], target_temperature=temperatures[1])
    assert_equals_loop(objective, lambda *each: naive(*each, objective))


@EACH
def test_the_gradient_is_right_by_finite_differences(direction):
    assert_gradient(KL(direction=direction, temperature=0.7, target_temperature=0.4))


@EACH
def test_it_is_never_below_zero_and_zero_where_the_teacher_differs_by_a_constant(direction):
    generator, objective = torch.Generator().manual_seed(0), KL(direction=direction, temperature=0.5)
    for _ in range(50):
        scores, targets = torch.randn(2, 6, generator=generator, dtype=torch.float64)
        assert row(objective, scores, targets) > 1e-3
        assert row(objective, targets / 2 + 3, targets).abs() < 1e-15


def test_symmetric_is_the_same_from_both_sides_and_can_exceed_log_two():
    one, other = torch.tensor([[4.0, 0, 0], [0, 0, 4]]).double()
    objective = KL(direction="symmetric")
    assert row(objective, one, other) == pytest.approx(row(objective, other, one).item())
    assert row(objective, one, other) > math.log(2)
    assert row(KL(), one, other) == pytest.approx(row(KL(direction="reverse"), other, one).item())


def test_a_sure_teacher_gives_info_nce():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    mine = losses_of(KL(target_temperature=1e-4), features, data, Identity())
    torch.testing.assert_close(mine, losses_of(InfoNCE(), features, data, Identity()))


@EACH
def test_a_teacher_that_is_sure_and_wrong_is_finite_in_log_space(direction):
    scores = torch.tensor([9.0, 0.0, 0.0], dtype=torch.float32).requires_grad_()
    objective = KL(direction=direction, target_temperature=1e-3)
    loss = row(objective, scores, [0, 1, 0])
    assert 4 < loss < 2000 and torch.autograd.grad(loss, scores)[0].isfinite().all()


def test_forward_spreads_over_what_the_teacher_likes_and_reverse_stays_with_one():
    targets = torch.tensor([5.0, 5.0, 0.0]).double()
    spread, narrow = torch.tensor([[2.0, 2.0, 2.0], [9.0, 0.0, 0.0]]).double()
    assert row(KL(), spread, targets) < row(KL(), narrow, targets)
    assert row(KL(direction="reverse"), narrow, targets) < row(KL(direction="reverse"), spread, targets)


@EACH
def test_bf16_rows_are_near_fp64(direction):
    assert_near_in_bf16(KL(direction=direction))


@pytest.mark.parametrize("field", ["temperature", "target_temperature"])
def test_ranges(field):
    with pytest.raises(ValueError, match=f"^{field} must be > 0, got -1"):
        KL(**{field: -1.0})
