from dataclasses import replace

import pytest
import torch

from tests.unit.objectives.answers.worlds import MASK, answers
from vlalign.objectives.answers.self_judge import SelfJudge

RATED = torch.tensor(
    [[9, 0, 4.4, 4.5], [2, 7.2, 0.49, 8.6], [3, 3, 3, 0], [12, -1, 0, 0], [0, 0, 0, 0]]
).double()
DIGIT = [[9, 0, 4, 5], [2, 7, 0, 9], [3, 3, 3, 0], [9, 0, 0, 0], [0, 0, 0, 0]]


def leaves(seed=0):
    generator = torch.Generator().manual_seed(seed)
    beside, alone = (2 * torch.randn(5, 4, 10, generator=generator, dtype=torch.float64) for _ in range(2))
    return beside.requires_grad_(), alone.requires_grad_()


def rated(beside, alone, target=RATED):
    none = torch.zeros(5, 4).double()
    return replace(answers(none, none, target=target), ratings=torch.stack([beside, alone], 2))


def naive(beside, alone, digits, alpha, beta):
    """One candidate at a time, of one query's own; the teacher is a constant."""
    losses = []
    for teacher, student, digit in zip(beside, alone, digits, strict=True):
        p, q = (x.exp() / x.exp().sum() for x in (teacher, student))
        fixed = p.detach()
        kl = sum(fixed[d] * (fixed[d].log() - q[d].log()) for d in range(10))
        losses.append(-p[digit].log() - alpha * q[digit].log() + beta * kl)
    return sum(losses) / len(losses) if losses else 0 * alone.sum()


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 2.0), (0.0, 1.0), (1.0, 0.0)])
def test_equals_a_loop(alpha, beta):
    beside, alone = leaves()
    losses = SelfJudge(alpha=alpha, beta=beta)(rated(beside, alone))
    loop = torch.stack(
        [
            naive(beside[q][own], alone[q][own], DIGIT[q][: own.sum()], alpha, beta)
            for q, own in enumerate(MASK)
        ]
    )
    torch.testing.assert_close(losses, loop)
    ways = (torch.autograd.grad(each.square().sum(), (beside, alone)) for each in (losses, loop))
    for mine, other in zip(*ways, strict=True):
        torch.testing.assert_close(mine, other)


def test_gradients_are_those_of_differences():
    beside, alone = leaves()
    objective = SelfJudge()
    assert torch.autograd.gradcheck(lambda x: objective(rated(beside.detach(), x)), (alone,))
    without = SelfJudge(beta=0.0)  # KL holds the teacher fixed, which differences do not
    assert torch.autograd.gradcheck(lambda x: without(rated(x, alone.detach())), (beside,))


def test_kl_is_zero_where_logits_differ_by_a_constant_and_has_no_gradient_to_the_teacher():
    beside, alone = leaves()
    objective = SelfJudge()
    same = objective.notes(rated(beside, beside.detach() + 3.0))["kl"]
    torch.testing.assert_close(same, torch.zeros(5).double(), atol=1e-12, rtol=0)
    kl = objective.notes(rated(beside, alone))["kl"]
    assert (kl[:4] > 0).all() and kl[4] == 0
    to_teacher, to_student = torch.autograd.grad(
        kl.sum(), (beside, alone), allow_unused=True, materialize_grads=True
    )
    assert to_teacher.abs().max() == 0 < to_student.abs().max()
    own = torch.autograd.grad(objective(rated(beside, alone)).sum(), beside)[0]
    plain = torch.autograd.grad(objective.notes(rated(beside, alone))["beside"].sum(), beside)[0]
    torch.testing.assert_close(own, plain)


def test_without_alpha_and_beta_only_who_sees_a_right_answer_learns():
    beside, alone = leaves()
    losses = SelfJudge(alpha=0.0, beta=0.0)(rated(beside, alone))
    torch.testing.assert_close(losses, SelfJudge().notes(rated(beside, alone))["beside"])
    to_beside, to_alone = torch.autograd.grad(losses.sum(), (beside, alone))
    assert to_alone.abs().max() == 0 < to_beside.abs().max()


def test_steps_teach_the_student_what_the_teacher_expects():
    beside, alone = leaves()
    digits = torch.arange(10).double()

    def gap():
        told = (x.softmax(-1) @ digits for x in (beside, alone))
        return (next(told) - next(told)).abs()[MASK].max().item()

    before, optimizer = gap(), torch.optim.Adam([beside, alone], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        SelfJudge()(rated(beside, alone)).sum().backward()
        optimizer.step()
    assert gap() < 0.05 < before
    assert ((alone.softmax(-1) @ digits) - torch.tensor(DIGIT)).abs()[MASK].max() < 0.5


def test_ranges_and_what_is_missing():
    with pytest.raises(ValueError, match="alpha must be finite and >= 0, got -1"):
        SelfJudge(alpha=-1)
    with pytest.raises(ValueError, match="beta must be finite and >= 0, got inf"):
        SelfJudge(beta=float("inf"))
    none = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="ratings beside a right answer, and there are none"):
        SelfJudge()(answers(none, none))
