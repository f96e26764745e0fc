import math

import pytest
import torch

from tests.unit.objectives.answers.worlds import LABELS, MASK, answers, logits
from vlalign.objectives.answers.yes_no import YesNo


def naive(yes, no, target, total=None, balanced=False):
    """One candidate at a time, of one query's own."""
    losses = []
    for y, n, t in zip(yes, no, target, strict=True):
        both = (y.exp() + n.exp()).log() if total is None else total
        losses.append(-min(float(t), 1.0) * (y - both) - (1 - min(float(t), 1.0)) * (n - both))
    if not losses:
        return 0 * yes.sum()
    right = [loss for loss, t in zip(losses, target, strict=True) if t > 0]
    wrong = [loss for loss, t in zip(losses, target, strict=True) if t <= 0]
    if balanced and right and wrong:
        return (sum(right) / len(right) + sum(wrong) / len(wrong)) / 2
    return sum(losses) / len(losses)


@pytest.mark.parametrize("balanced", [False, True])
def test_equals_a_loop(balanced):
    yes, no = logits()
    losses = YesNo(balanced=balanced)(answers(yes, no))
    loop = [
        naive(yes[q][MASK[q]], no[q][MASK[q]], LABELS[q][MASK[q]], balanced=balanced) for q in range(len(yes))
    ]
    torch.testing.assert_close(losses, torch.stack(loop))
    ways = (torch.autograd.grad(each.square().sum(), (yes, no)) for each in (losses, torch.stack(loop)))
    for mine, other in zip(*ways, strict=True):
        torch.testing.assert_close(mine, other)


def test_over_the_vocabulary_it_is_the_cross_entropy_of_the_next_token():
    words = torch.randn(5, 4, 11, dtype=torch.float64, requires_grad=True)
    losses = YesNo(over="vocabulary")(answers(words[..., 3], words[..., 7], words.logsumexp(-1)))
    labels = torch.where(LABELS > 0, 3, 7)
    each = torch.nn.functional.cross_entropy(words.flatten(0, 1), labels.flatten(), reduction="none")
    expected = (each.reshape(5, 4) * MASK).sum(1) / MASK.sum(1).clamp(min=1)
    torch.testing.assert_close(losses, expected)
    assert (YesNo()(answers(words[..., 3], words[..., 7])) <= losses).all()  # fewer words, less to be wrong


def test_the_gradient_is_right_by_finite_differences():
    yes, no = logits()
    assert torch.autograd.gradcheck(lambda y, n: YesNo(balanced=True)(answers(y, n)), (yes, no))
    total = torch.logaddexp(yes, no).detach() + 1
    vocabulary = YesNo(over="vocabulary")
    assert torch.autograd.gradcheck(
        lambda y, n, t: vocabulary(answers(y, n, t)), (yes, no, total.requires_grad_())
    )


def test_a_share_of_yes_and_grades_above_one():
    yes, no = torch.zeros(1, 1), torch.zeros(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    for grade in (0.0, 0.3, 1.0):
        loss = YesNo()(answers(yes + 2, no, target=torch.tensor([[grade]]), mask=mask))
        assert loss.item() == pytest.approx(math.log(1 + math.exp(2)) - grade * 2, rel=1e-5)
    one, three = (YesNo()(answers(yes + 2, no, target=torch.tensor([[g]]), mask=mask)) for g in (1.0, 3.0))
    assert one == three
    none, less = (YesNo()(answers(yes - 9, no, target=torch.tensor([[g]]), mask=mask)) for g in (0.0, -2.0))
    assert less == none > 0  # as a run of TREC has grades below 0


def test_what_is_no_candidate_does_not_matter_and_rows_of_one_kind_are_finite():
    yes, no = logits()
    junk = torch.where(MASK, 0, 1e4)
    objective = YesNo(balanced=True)
    torch.testing.assert_close(objective(answers(yes + junk, no - junk)), objective(answers(yes, no)))
    assert objective(answers(yes, no))[4] == 0


def test_bf16_answers_are_near_fp64():
    yes, no = logits()
    short = YesNo()(answers(yes.bfloat16().float(), no.bfloat16().float()))
    torch.testing.assert_close(short.double(), YesNo()(answers(yes, no)), atol=0.03, rtol=0.03)


def test_without_words_there_is_no_vocabulary():
    assert YesNo(over="vocabulary").vocabulary and not YesNo().vocabulary
    with pytest.raises(ValueError, match="wants a language model's words"):
        YesNo(over="vocabulary")(answers(*logits()))
