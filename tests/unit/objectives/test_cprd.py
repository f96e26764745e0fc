import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from tests.unit.objectives import lists
from tests.unit.objectives.lists import (
    GRADES,
    LABELS,
    SCORES,
    Laid,
    assert_equals_loop,
    assert_gradient,
    assert_near_in_bf16,
    grouped,
    row,
)
from vlalign.objectives.cprd import CPRD
from vlalign.objectives.list_mle import ListMLE
from vlalign.registry import OBJECTIVES, encode
from vlalign.supervision.targets.given import Given
from vlalign.tasks.rerank import Rerank
from vlalign.tasks.terms.group import GroupTerm
from vlalign.types import PairScores, UserError

# The positive, three valid negatives and three that are not, in no order
STUDENT = torch.tensor([0.3, -1.2, 0.9, 0.2, 1.4, -0.5, 0.6], dtype=torch.float64)
TEACHER = torch.tensor([0.04, 0.5, 0.9, 0.02, 0.3, 0.01, 0.7], dtype=torch.float64)
POSITIVE, FIRST, VALID, INVALID = 2, 6, [6, 1, 4], [0, 3, 5]


@pytest.fixture
def probabilities(monkeypatch):
    """The candidates' grades as what a teacher may say."""
    monkeypatch.setattr(lists, "LABELS", LABELS.clamp(min=0) / 2)


def naive(scores: Tensor, teacher: Tensor, objective: CPRD) -> Tensor:
    """One choice at a time, until the first that is not valid."""
    loss = 0 * scores.sum()
    best = max(teacher.tolist(), default=0)
    ranked = sorted((at for at, p in enumerate(teacher) if p < best), key=lambda at: -teacher[at])
    for at in ranked:
        if teacher[at] < objective.valid * best:
            break
        against = [scores[other] for other in ranked if teacher[other] <= teacher[at]]
        raised = sum((x / objective.temperature).exp() for x in against)
        loss = loss + raised.log() - scores[at] / objective.temperature
    return loss


def slope(objective: CPRD, scores: Tensor = STUDENT, teacher: Tensor = TEACHER) -> Tensor:
    leaf = scores.clone().requires_grad_()
    return torch.autograd.grad(row(objective, leaf, teacher), leaf)[0]


@pytest.mark.parametrize("valid", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_a_loop(temperature, valid, probabilities):
    objective = CPRD(temperature=temperature, valid=valid)
    assert_equals_loop(objective, lambda *each: naive(*each, objective))


@pytest.mark.parametrize("valid", [0.1, 0.6])
def test_random_rows_equal_a_loop(valid):
    generator, objective = torch.Generator().manual_seed(0), CPRD(temperature=0.5, valid=valid)
    for width in (1, 2, 5, 16):
        scores, teacher = torch.randn(2, 20, width, generator=generator, dtype=torch.float64)
        teacher = teacher.sigmoid() ** 3
        wanted = torch.stack([naive(*each, objective) for each in zip(scores, teacher, strict=True)])
        torch.testing.assert_close(objective(Laid(scores, teacher)), wanted)


def test_the_gradient_is_right_by_finite_differences(probabilities):
    assert_gradient(CPRD(temperature=0.7))


def test_one_valid_negative_is_cross_entropy_with_it_as_the_target():
    teacher = TEACHER.where(TEACHER > 0.6, TEACHER / 100)
    negatives = [FIRST, *(at for at in range(7) if at not in (FIRST, POSITIVE))]
    wanted = -STUDENT[negatives].log_softmax(0)[0]
    torch.testing.assert_close(row(CPRD(), STUDENT, teacher), wanted)


def test_if_all_are_valid_it_is_list_mle_of_the_negatives_and_a_likelihood_of_orders():
    negatives = [at for at in range(7) if at != POSITIVE]
    mean = row(ListMLE(temperature=0.5), STUDENT[negatives], TEACHER[negatives])
    mine = row(CPRD(temperature=0.5, valid=0.0), STUDENT, TEACHER)
    torch.testing.assert_close(mine, 5 * mean)  # the last has no choice left
    orders = [torch.tensor([0.9, *order]) for order in permutations([0.8, 0.7, 0.6, 0.5])]
    total = sum(math.exp(-row(CPRD(), STUDENT[:5], order)) for order in orders)
    assert total == pytest.approx(1)


def test_if_none_is_valid_it_is_zero_and_teaches_nothing():
    teacher = TEACHER.where(TEACHER == 0.9, TEACHER / 100)
    assert row(CPRD(), STUDENT, teacher) == 0 and slope(CPRD(), STUDENT, teacher).eq(0).all()


def test_only_the_order_of_valid_negatives_counts():
    loss = row(CPRD(), STUDENT, TEACHER)
    torch.testing.assert_close(row(CPRD(), STUDENT, TEACHER**1.05), loss)
    bent = [0.05, 0.12, 1.0, 0.0, 0.11, 0.05, 0.99]  # as valid as before, in the same order
    torch.testing.assert_close(row(CPRD(), STUDENT, bent), loss)
    swapped = [0.04, 0.3, 0.9, 0.02, 0.5, 0.01, 0.7]
    assert (row(CPRD(), STUDENT, swapped) - loss).abs() > 0.1


def test_the_order_of_invalid_ones_does_not_count():
    teacher = TEACHER.clone()
    for order in permutations(INVALID):
        teacher[list(order)] = TEACHER[INVALID]
        torch.testing.assert_close(row(CPRD(), STUDENT, teacher), row(CPRD(), STUDENT, TEACHER))
        torch.testing.assert_close(slope(CPRD(), STUDENT, teacher), slope(CPRD()))


def test_a_constant_of_the_students_scores_changes_nothing():
    torch.testing.assert_close(row(CPRD(), STUDENT + 7, TEACHER), row(CPRD(), STUDENT, TEACHER))
    assert slope(CPRD()).sum().abs() < 1e-12


def test_equal_scores_cost_the_log_of_how_many_are_left_at_each_choice():
    wanted = math.log(6) + math.log(5) + math.log(4)
    assert row(CPRD(), [0.3] * 7, TEACHER).item() == pytest.approx(wanted)


def test_the_first_is_pulled_and_invalid_ones_are_always_pushed():
    for seed in range(50):
        scores = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = slope(CPRD(temperature=0.3), 2 * scores)
        assert found[FIRST] < 0 and (found[INVALID] > 0).all()


def test_no_choice_meets_what_the_teacher_ranks_above_it():
    """Each threshold places one more, and what that choice costs does not know those above."""
    bounds = [0.6, 0.5, 0.3]  # of 0.9: above 0.7 and 0.5 and 0.3 in turn
    losses = [lambda x, v=v: row(CPRD(valid=v), x, TEACHER) for v in bounds]
    for place in (1, 2):
        leaf = STUDENT.clone().requires_grad_()
        choice = losses[place](leaf) - losses[place - 1](leaf)
        found = torch.autograd.grad(choice, leaf)[0]
        assert found[VALID[:place]].abs().max() < 1e-12 and found[VALID[place]] < -0.01
        moved = STUDENT.clone()
        moved[VALID[:place]] += 3
        torch.testing.assert_close(losses[place](moved) - losses[place - 1](moved), choice.detach())


def test_the_positive_is_in_no_choice():
    moved = STUDENT.clone()
    moved[POSITIVE] = 100
    torch.testing.assert_close(row(CPRD(), moved, TEACHER), row(CPRD(), STUDENT, TEACHER))
    assert slope(CPRD())[POSITIVE] == 0
    both = TEACHER.where(TEACHER != 0.7, 0.9)  # a second that the teacher finds as good
    assert slope(CPRD(), STUDENT, both)[[POSITIVE, FIRST]].eq(0).all()


def test_valid_is_a_share_of_the_positives_probability_and_reached_where_equal():
    teacher = [0.5, 0.25, 0.125, 0.0625]
    losses = [row(CPRD(valid=v), [0.0] * 4, teacher).item() for v in (0.51, 0.5, 0.26, 0.25)]
    assert losses == pytest.approx([0, math.log(3), math.log(3), math.log(3) + math.log(2)])


def test_equal_negatives_are_treated_equally_in_whatever_order_they_come():
    teacher = torch.tensor([0.9, 0.4, 0.4, 0.4, 0.2, 0.0, 0.0]).double()
    loss, found = row(CPRD(), STUDENT, teacher), slope(CPRD(), STUDENT, teacher)
    for seed in range(20):
        turned = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(row(CPRD(), STUDENT[turned], teacher[turned]), loss)
        torch.testing.assert_close(slope(CPRD(), STUDENT[turned], teacher[turned]), found[turned])
    assert row(CPRD(), [0.3] * 7, teacher).item() == pytest.approx(3 * math.log(6) + math.log(3))
    equal = slope(CPRD(), torch.zeros(7).double(), teacher)
    assert equal[1] == equal[2] == equal[3] < 0 and equal[5] == equal[6] > 0


@pytest.mark.parametrize("opinion", [0.0, 0.4, 1.0])
def test_a_row_of_one_opinion_has_no_order(opinion):
    teacher = torch.full((7,), opinion).double()
    assert row(CPRD(), STUDENT, teacher) == 0 and slope(CPRD(), STUDENT, teacher).eq(0).all()


def test_rows_of_any_length_with_few_candidates_are_zero(probabilities):
    scores = SCORES.clone().requires_grad_()
    losses = grouped(CPRD(), scores)
    few = torch.tensor([len(grades) < 3 or len(set(grades)) < 2 for grades in GRADES])
    assert losses[few].eq(0).all() and losses[~few].gt(0).all()
    assert torch.autograd.grad(losses[few].sum(), scores)[0].eq(0).all()
    leaf = STUDENT[None].clone().requires_grad_()
    losses = CPRD()(Laid(leaf, TEACHER[None], torch.zeros(1, 7, dtype=torch.bool)))
    assert losses.item() == 0 and torch.autograd.grad(losses.sum(), leaf)[0].eq(0).all()
    assert CPRD()(Laid(torch.zeros(2, 0), torch.zeros(2, 0))).tolist() == [0, 0]


@pytest.mark.parametrize("junk", [0.0, 0.95, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
def test_what_stands_where_there_is_no_candidate_does_not_matter(junk):
    padded = [torch.cat([torch.full((2,), junk), x])[None].float() for x in (STUDENT, TEACHER)]
    padded[0].requires_grad_()
    loss = CPRD()(Laid(*padded, torch.arange(9)[None] > 1))
    torch.testing.assert_close(loss[0].double(), row(CPRD(), STUDENT, TEACHER))
    found = torch.autograd.grad(loss.sum(), padded[0])[0][0]
    assert found[:2].eq(0).all()
    torch.testing.assert_close(found[2:].double(), slope(CPRD()), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [30.0, 1e4, -1e4])
def test_scores_far_apart_have_a_finite_gradient(size):
    leaf = (size * TEACHER.float())[None].requires_grad_()
    loss = CPRD()(Laid(leaf, TEACHER.float()[None])).sum()
    assert loss.isfinite() and torch.autograd.grad(loss, leaf)[0].isfinite().all()


@pytest.mark.parametrize("number", [-0.04, 1.023, 3.5, torch.nan])
def test_what_is_no_probability_is_refused(number):
    teacher = TEACHER.clone()
    teacher[3] = number
    with pytest.raises(
        UserError, match=rf"^cprd: the targets must be .* from 0 to 1, found {number:g}; name"
    ):
        row(CPRD(), STUDENT, teacher)


def test_candidates_without_the_teachers_number_are_refused_with_what_they_have():
    task = Rerank(targets=Given(field="teacher"), terms=(GroupTerm(objective=CPRD()),))
    fields = {"query_fields": {}, "key_fields": {"label": torch.ones(2)}}
    scores = PairScores(*torch.zeros(3, 2))
    with pytest.raises(UserError, match="'teacher', which the candidates do not have; they have label"):
        task.loss(scores, {"ids": ["q"], "group": torch.zeros(2, dtype=torch.int64), **fields}, 1, 1)


def test_bf16_rows_are_near_fp64(probabilities):
    assert_near_in_bf16(CPRD())


def test_ranges_and_a_recipe_gives_it_back():
    objective = CPRD(temperature=0.02, valid=0.3)
    assert OBJECTIVES.decode(encode(objective, component=True)) == objective
    with pytest.raises(ValueError, match="^temperature must be > 0, got 0"):
        CPRD(temperature=0.0)
    for valid in (-0.1, 1.1):
        with pytest.raises(ValueError, match=f"^valid must be >= 0 and <= 1, got {valid}"):
            CPRD(valid=valid)
