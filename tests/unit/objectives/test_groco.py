import math

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import batch, embeddings, gradients, leaves, losses_of
from vlalign.objectives.groco import GroCo, ordering_loss
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.types import Embeddings, UserError

CAPTIONS = [0, 1, 2, 0, 3, 0, 1]  # three, two or one positive
DATA = batch(range(7), range(7), caption=(CAPTIONS, CAPTIONS))
TARGETS = Identity(same=("caption",))


def naive(row: Tensor, relevant: Tensor, groco: GroCo) -> Tensor:
    """One row, one swap at a time."""
    negatives = row[~relevant].sort().values[-groco.hardest :]
    x = [*negatives, *row[relevant].sort().values]
    size, low = len(x), len(negatives)
    share = [[torch.tensor(float(i == j)).double() for j in range(size)] for i in range(size)]
    for layer in range(size):
        for a in range(layer % 2, size - 1, 2):
            b = a + 1
            stay = (groco.beta * (x[b] - x[a])).atan() / math.pi + 0.5
            for line in (x, *share):
                line[a], line[b] = (
                    stay * line[a] + (1 - stay) * line[b],
                    (1 - stay) * line[a] + stay * line[b],
                )
    high = [sum(line[low:]) for line in share]
    return -sum((p if i >= low else 1 - p).log() for i, p in enumerate(high)) / size


def loss_of(negatives: list[float] | Tensor, positives: list[float] | Tensor, beta: float = 10.0) -> Tensor:
    """Of one row; sorts both groups."""
    low, high = (torch.as_tensor(x, dtype=torch.float64).sort().values[None] for x in (negatives, positives))
    return ordering_loss(low, high, beta)[0]


def random_rows() -> tuple[Tensor, Tensor]:
    """300 rows of 6 negatives and 2 positives."""
    x = torch.rand(300, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    return tuple(part.sort(1).values.requires_grad_() for part in x.split([6, 2], 1))


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("fields", [{"hardest": 3}, {"hardest": 6, "beta": 1.0}])
def test_equals_a_loop_in_which_what_a_row_meets_is_fixed(side, fields):
    features, groco = embeddings(7, 7), GroCo(**fields)
    query, key = (
        (features.query, features.key.detach())
        if side == "query"
        else (features.key, features.query.detach())
    )
    relevant = torch.tensor(CAPTIONS)[:, None] == torch.tensor(CAPTIONS)
    reference = torch.stack([naive(*each, groco) for each in zip(query @ key.T, relevant, strict=True)])
    mine = losses_of(groco, features, DATA, TARGETS, side)
    torch.testing.assert_close(mine, reference)
    slopes = (gradients(loss.square().sum(), features) for loss in (mine, reference))
    for own, other in zip(*slopes, strict=True):
        torch.testing.assert_close(own, other)


def test_the_gradient_is_right_by_finite_differences():
    features = embeddings(7, 7)

    def losses(query: Tensor) -> Tensor:
        fixed = [x.detach() for x in leaves(features)[1:]]
        return losses_of(GroCo(hardest=3), Embeddings(query, *fixed), DATA, TARGETS)

    assert torch.autograd.gradcheck(losses, features.query)


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_equal_scores_have_one_loss(beta):
    assert loss_of([0.3] * 10, [0.3], beta).item() == pytest.approx(0.2020, abs=5e-5)


def test_beta_decides_how_far_from_its_worst_the_loss_can_come():
    best, worst = ([-1.0] * 10, [1.0]), ([1.0] * 10, [-1.0])
    found = [loss_of(*scores, beta=beta).item() for beta in (1.0, 10.0) for scores in (best, worst)]
    assert found == pytest.approx([0.147, 0.264, 0.015, 0.475], abs=6e-4)


def test_collapse_is_worse_than_half_separated():
    collapsed, half, whole = (loss_of([-x] * 10, [x]) for x in (0.0, 0.5, 1.0))
    assert collapsed > 2 * half > 2 * whole


def test_without_softness_the_loss_is_zero_where_every_positive_beats_every_negative():
    low, high = random_rows()
    right = (high.amin(1) > low.amax(1)).tolist()
    losses = ordering_loss(low, high, 1e12)
    assert (losses < 1e-9).tolist() == right and 0 < sum(right) < 300


def test_a_constant_of_a_row_changes_nothing():
    low, high = random_rows()
    torch.testing.assert_close(ordering_loss(low + 5, high + 5, 10.0), ordering_loss(low, high, 10.0))


@pytest.mark.parametrize("beta", [1.0, 10.0])
def test_raising_all_positives_never_raises_the_loss(beta):
    low, high = random_rows()
    slope = torch.autograd.grad(ordering_loss(low, high, beta).sum(), high)[0]
    assert (slope.sum(1) <= 0).all()


def test_at_beta_one_each_score_is_pushed_the_right_way():
    low, high = random_rows()
    down, up = torch.autograd.grad(ordering_loss(low, high, 1.0).sum(), (low, high))
    assert (down >= 0).all() and (up <= 0).all()


def test_only_the_hardest_negatives_count():
    features, groco = embeddings(1, 5), GroCo(hardest=2)
    loss = losses_of(groco, features, batch([0], range(5)), Identity())
    ordered = (features.query @ features.key.T)[0].detach()
    torch.testing.assert_close(loss[0], loss_of(ordered[1:].sort().values[-2:], ordered[:1]))


def test_masked_rows_are_sorted_with_the_negatives_they_have():
    features, groco = embeddings(6, 6), GroCo(hardest=4)
    cosines = (features.query @ features.key.T).detach()
    mine = losses_of(
        groco, features, batch(range(6), range(6)), Identity(), selectors=(FalseNegative(margin=0.0),)
    )
    sizes = set()
    for at, row in enumerate(cosines):
        lower = row[row < row[at]].sort().values[-4:]
        sizes.add(len(lower))
        torch.testing.assert_close(mine[at], loss_of(lower, row[at : at + 1]) if len(lower) else 0 * row[0])
    assert len(sizes) > 2


def test_rows_without_positives_or_negatives_are_zero():
    features = embeddings(3, 4)
    loss = losses_of(GroCo(hardest=2), features, batch([0, 90, 1], range(4)), Identity())
    assert loss[1] == 0 and gradients(loss.sum(), features)[0][1].eq(0).all()
    captions = batch(range(3), range(4), caption=([0] * 3, [0] * 4))
    loss = losses_of(GroCo(hardest=2), features, captions, TARGETS)
    assert loss.eq(0).all() and gradients(loss.sum(), features)[0].eq(0).all()


def test_both_directions_teach_both_sides_and_one_leaves_a_gradient_of_zero():
    features, data = embeddings(7, 7), batch(range(7), range(7))
    for directions, silent in ((("query_to_key", "key_to_query"), []), (("query_to_key",), [1])):
        term = Term(objective=GroCo(hardest=3))
        task = Align(targets=Identity(), terms=(term,), directions=directions)
        assert not task.reads_scale
        slopes = torch.autograd.grad(task.loss(features, data, 0, 1).total, [features.query, features.key])
        assert [at for at, slope in enumerate(slopes) if slope.eq(0).all()] == silent


def test_no_table_for_so_many_negatives_is_told():
    features, data = embeddings(4, 4), batch(range(4), range(4))
    losses_of(GroCo(hardest=3), features, data, Identity())
    with pytest.raises(UserError, match="hardest is 10, and each row meets 4 others.* set a smaller hardest"):
        losses_of(GroCo(), features, data, Identity())


def test_bf16_rows_are_near_fp64():
    halves = embeddings(7, 7, dtype=torch.bfloat16)
    doubles = Embeddings(*(x.detach().double() for x in leaves(halves)))
    mine, reference = (losses_of(GroCo(hardest=3), each, DATA, TARGETS) for each in (halves, doubles))
    assert mine.dtype is torch.float32
    torch.testing.assert_close(mine.double(), reference, atol=1e-5, rtol=1e-5)


def test_a_certain_row_has_a_finite_gradient():
    low, high = torch.full((1, 4), -1.0, requires_grad=True), torch.full((1, 1), 1.0, requires_grad=True)
    for signs in (1, -1):
        loss = ordering_loss(signs * low, signs * high, 1e30)
        assert all(slope.isfinite().all() for slope in (loss, *torch.autograd.grad(loss.sum(), (low, high))))


def test_ranges():
    with pytest.raises(ValueError, match="beta must be > 0, got -1"):
        GroCo(beta=-1.0)
    with pytest.raises(ValueError, match="hardest must be >= 1, got 0"):
        GroCo(hardest=0)
