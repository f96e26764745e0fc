"""What holds for every objective that reads whole rows of a query's own candidates."""

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.lists import GRADES, LABELS, SCORES, Laid, grouped
from vlalign.objectives.kl import KL
from vlalign.objectives.lambda_rank import LambdaRank
from vlalign.objectives.list_mle import ListMLE
from vlalign.objectives.list_net import ListNet
from vlalign.objectives.margin_mse import MarginMSE
from vlalign.objectives.rank_net import RankNet
from vlalign.registry import OBJECTIVES, encode
from vlalign.tasks.terms import Term
from vlalign.weighters.focal import Focal
from vlalign.weighters.storm import Storm

RANKED = [
    RankNet(temperature=0.5),
    ListNet(target_temperature=0.5),
    ListMLE(temperature=2.0),
    LambdaRank(),
    LambdaRank(gain="linear", k=2),
]
TAUGHT = [MarginMSE(scale=2.0), *(KL(direction=each) for each in ("forward", "reverse", "symmetric"))]
ALL = pytest.mark.parametrize("objective", [*RANKED, *TAUGHT], ids=str)
TARGETS = torch.tensor([[2.0, 0, 1, 1, 0, 0], [0.5, 0.25, -1, 0.25, 0, 3]])


def slopes(objective, scores: Tensor, targets: Tensor = TARGETS, mask: Tensor | None = None):
    """Losses, and their gradient by the scores."""
    scores = scores.clone().requires_grad_()
    losses = objective(Laid(scores, targets, mask))
    return losses.detach(), torch.autograd.grad(losses.sum(), scores)[0]


def some_scores(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


@ALL
@pytest.mark.parametrize("junk", [0.0, 1e30, -1e30, torch.inf, -torch.inf, torch.nan])
def test_what_stands_where_there_is_no_candidate_does_not_matter(objective, junk):
    scores, mask = some_scores(torch.float32), torch.tensor([True, False]).repeat_interleave(6).repeat(2, 1)
    wide = [torch.cat([x, torch.full_like(x, junk)], 1) for x in (scores, TARGETS)]
    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    losses, slope = slopes(objective, *(x[:, shuffled] for x in (*wide, mask)))
    wanted, wanted_slope = slopes(objective, scores)
    torch.testing.assert_close(losses, wanted)
    assert slope[:, shuffled >= 6].eq(0).all()
    torch.testing.assert_close(slope[:, shuffled.argsort()[:6]], wanted_slope)


@ALL
def test_the_order_of_candidates_does_not_matter_even_among_equals(objective):
    scores, turned = some_scores(), torch.tensor([4, 2, 0, 5, 1, 3])
    scores[0, 1:] = 0.5  # ties among equal and among unequal candidates
    losses, slope = slopes(objective, scores)
    again, other = slopes(objective, scores[:, turned], TARGETS[:, turned])
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(other, slope[:, turned])
    assert slope.abs().amax(1).gt(0).all()


@ALL
def test_a_constant_of_a_row_changes_nothing(objective):
    moved = some_scores() + torch.tensor([[5.0], [-3.0]])
    losses, slope = slopes(objective, some_scores())
    torch.testing.assert_close(slopes(objective, moved)[0], losses)
    torch.testing.assert_close(slope.sum(1), torch.zeros(2).double(), atol=1e-12, rtol=0)


@ALL
def test_equal_scores_are_told_apart(objective):
    _, slope = slopes(objective, torch.zeros(2, 6).double())
    assert slope[0, 0] < 0 < slope[0, -1] and slope[1, -1] < 0 < slope[1, 2]


@ALL
def test_one_candidate_or_none_is_zero(objective):
    scores = SCORES.clone().requires_grad_()
    losses = grouped(objective, scores)
    alone = torch.tensor([len(grades) < 2 for grades in GRADES])
    assert losses[alone].eq(0).all() and losses[[0, 4, 5]].gt(0).all()
    assert torch.autograd.grad(losses[alone].sum(), scores)[0].eq(0).all()
    losses, slope = slopes(objective, some_scores(), mask=torch.zeros(2, 6, dtype=torch.bool))
    assert losses.eq(0).all() and slope.eq(0).all()
    losses, slope = slopes(objective, torch.zeros(2, 0), torch.zeros(2, 0))
    assert losses.tolist() == [0, 0] and slope.shape == (2, 0)


@pytest.mark.parametrize("objective", RANKED, ids=str)
@pytest.mark.parametrize("grade", [False, True, -1.5, 0.3, 7.0])
def test_a_row_of_one_grade_has_nothing_to_rank(objective, grade):
    losses, slope = slopes(objective, some_scores(torch.float32), torch.full((2, 6), grade))
    assert losses.eq(0).all() and slope.eq(0).all()


@pytest.mark.parametrize("objective", TAUGHT, ids=str)
def test_a_row_of_one_grade_teaches_equal_scores(objective):
    assert slopes(objective, some_scores(), torch.full((2, 6), 0.3))[0].gt(0.1).all()


@ALL
def test_labels_may_be_yes_and_no(objective):
    labels = torch.tensor([[True, False, False, True, False, False]] * 2)
    found = slopes(objective, some_scores(), labels), slopes(objective, some_scores(), labels.double())
    for mine, other in zip(*found, strict=True):
        assert torch.equal(mine, other)


@ALL
@pytest.mark.parametrize("size", [30.0, 1e4])
def test_scores_far_apart_have_a_finite_gradient(objective, size):
    for sign in (1, -1):
        losses, slope = slopes(objective, sign * size * TARGETS)
        assert losses.isfinite().all() and slope.isfinite().all()


@ALL
def test_a_weighter_that_reads_reductions_is_refused_and_a_recipe_gives_it_back(objective):
    for weighter in (Focal(), Storm()):
        with pytest.raises(ValueError, match="cannot weigh the rows of .*, which names no reduction"):
            Term(objective=objective, weighters=(weighter,))
    assert OBJECTIVES.decode(encode(objective, component=True)) == objective


def test_the_candidates_are_as_described():
    assert len(LABELS) == len(SCORES) == sum(map(len, GRADES))
