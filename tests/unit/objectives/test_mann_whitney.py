import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import (
    Graded,
    Largest,
    assert_same,
    batch,
    embeddings,
    gradients,
    leaves,
    losses_of,
)
from vlalign.objectives import mann_whitney
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.mann_whitney import MannWhitney
from vlalign.objectives.pairwise_logistic import PairwiseLogistic
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.types import Embeddings

ONE = MannWhitney(temperature=0.3)


@dataclass(frozen=True)
class Halved:
    """Columns with a flag are left out, or count by half."""

    fields = ("flag",)
    reductions = {}

    def tile(self, row, column, cosine, targets):
        return (1 - column["flag"] / 2).expand_as(cosine)


@pytest.fixture
def pooled(monkeypatch):
    monkeypatch.setattr(mann_whitney, "EXACT", 0)


def scored(scores: Tensor) -> Embeddings:
    """Embeddings whose cosines are these; the gradient by the queries is that by the scores."""
    one, none = torch.ones(1).double(), torch.zeros(1).double()
    return Embeddings(scores.clone().requires_grad_(), torch.eye(scores.shape[1]).double(), one, none)


def random_scores(size: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, size, generator=generator, dtype=torch.float64) * 2 - 1


def losses(scores: Tensor | Embeddings, objective=ONE) -> Tensor:
    """Of rows whose positive is the one at their place."""
    features = scored(scores) if isinstance(scores, Tensor) else scores
    data = batch(range(len(features.query)), range(len(features.key)))
    return losses_of(objective, features, data, Identity(), tile=(64, 64))


def naive(cosines: Tensor, targets: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """One positive and one negative at a time."""
    negatives = [
        (weight[i, j], cosines[i, j]) for i, j in (targets <= 0).nonzero().tolist() if weight[i, j] > 0
    ]
    answers = []
    for row, relevance, count in zip(cosines, targets, weight, strict=True):
        relevance = relevance * count
        if relevance.sum() == 0 or not negatives:
            answers.append(0 * row.sum())
            continue
        positive = (row * relevance).sum() / relevance.sum()
        pairs = [w * (1 + ((s - positive) / temperature).exp()).log() for w, s in negatives]
        answers.append(sum(pairs) / sum(w for w, _ in negatives))
    return torch.stack(answers)


@pytest.mark.parametrize("side", ["query", "key"])
def test_equals_a_loop(side):
    features, query, key = embeddings(5, 8), [0, 2, 4, 6, 20], range(8)
    flags = [0, 1, 2, 0, 0, 2, 1, 0]
    data = batch(query, key, flag=(flags[:5], flags))
    targets = Graded().tile({"row": torch.tensor(query)[:, None]}, {"row": torch.arange(8)[None]})
    cosines, selectors = features.query @ features.key.T, (Halved(),) if side == "query" else ()
    weight = 1 - torch.tensor(flags).double().expand(5, 8) / 2 if selectors else torch.ones(5, 8).double()
    tables = (cosines, targets, weight) if side == "query" else (cosines.T, targets.T, weight.T)
    reference = naive(*tables, 0.3)
    mine = losses_of(ONE, features, data, Graded(), side, selectors)
    assert_same(mine.square().sum(), reference.square().sum(), features)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("bins", [512, 8192])
def test_pooled_negatives_are_near_and_nearer_with_more_bins(side, bins, monkeypatch):
    features, query = embeddings(24, 32, width=8), [*range(20), 90, 91, 92, 93]
    flags = [column % 3 for column in range(32)]
    data = batch(query, range(32), flag=(flags[:24], flags))
    ask = {"features": features, "data": data, "targets": Graded(), "side": side}
    ask["selectors"] = (Halved(),) if side == "query" else ()
    exact = losses_of(MannWhitney(temperature=0.1), **ask)
    monkeypatch.setattr(mann_whitney, "EXACT", 0)
    monkeypatch.setattr(mann_whitney, "BINS", bins)
    near = losses_of(MannWhitney(temperature=0.1), **ask)
    bound = 1 / (bins - 1) ** 2 / 4 / 0.1**2  # twice (width of a cell)^2 / 8 times the largest curvature
    assert ((near - exact).abs() <= bound).all() and (near != exact).any()
    slopes = [torch.cat([x.flatten() for x in gradients(loss.sum(), features)]) for loss in (near, exact)]
    assert (slopes[0] - slopes[1]).norm() < 50 / bins * slopes[1].norm()


def test_at_the_default_temperature_pooling_is_off_by_a_millionth(pooled, monkeypatch):
    features = embeddings(100, 100, width=16)
    near = losses(features, MannWhitney())
    slope = torch.cat(gradients(near.sum(), features)[:2])
    monkeypatch.setattr(mann_whitney, "EXACT", 2**26)
    exact = losses(features, MannWhitney())
    assert abs(near.sum() / exact.sum() - 1) < 1e-5
    reference = torch.cat(gradients(exact.sum(), features)[:2])
    assert (slope - reference).norm() < 1e-3 * reference.norm()


def test_the_gradient_is_right_by_finite_differences():
    def summed(*tensors: Tensor) -> Tensor:
        return losses_of(ONE, Embeddings(*tensors), batch([0, 1, 90], range(4)), Identity())

    assert torch.autograd.gradcheck(summed, leaves(embeddings(3, 4)))


@pytest.mark.parametrize("seed", range(5))
def test_over_log_two_it_bounds_the_share_of_wrong_pairs(seed):
    scores = random_scores(seed=seed)
    positives, negatives = scores.diagonal(), scores[~torch.eye(6).bool()]
    wrong = (positives[:, None] <= negatives).double().mean()
    assert wrong <= losses(scores).mean() / math.log(2)


@pytest.mark.parametrize("exact", [0, 2**26])
def test_equal_scores_cost_log_two(exact, monkeypatch):
    monkeypatch.setattr(mann_whitney, "EXACT", exact)
    torch.testing.assert_close(
        losses(torch.zeros(6, 6).double(), MannWhitney()),
        torch.full((6,), 2.0).double().log(),
        atol=1e-4,
        rtol=0,
    )


def test_it_sees_offsets_of_queries_which_contrast_does_not_and_none_of_all():
    scores = random_scores() / 2
    moved = scores + torch.linspace(-0.5, 0.5, 6)[:, None].double()
    for objective in (InfoNCE(), PairwiseLogistic()):
        torch.testing.assert_close(losses(moved, objective), losses(scores, objective))
    assert (losses(moved) - losses(scores)).abs().max() > 0.1
    assert torch.equal(moved.argsort(1), scores.argsort(1))  # so that no ranking of a query changes
    torch.testing.assert_close(losses(scores + 0.25), losses(scores))


def test_one_query_is_the_pairwise_logistic_loss():
    features = embeddings(1, 2)
    reference = losses(features, PairwiseLogistic(temperature=0.3))
    assert_same(losses(features).sum(), reference.sum(), features)


@pytest.mark.parametrize("exact", [0, 2**26])
def test_a_small_temperature_gives_the_mean_hinge(exact, monkeypatch):
    monkeypatch.setattr(mann_whitney, "EXACT", exact)
    scores = random_scores()
    gaps = scores[~torch.eye(6).bool()] - scores.diagonal()[:, None]
    mine = 1e-6 * losses(scores, MannWhitney(temperature=1e-6))
    torch.testing.assert_close(mine, gaps.clamp(min=0).mean(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("exact", [0, 2**26])
def test_positives_rise_negatives_fall_and_together_they_stay(exact, monkeypatch):
    monkeypatch.setattr(mann_whitney, "EXACT", exact)
    features = scored(random_scores())
    slope = torch.autograd.grad(losses(features).sum(), features.query)[0]
    assert (slope.diagonal() < 0).all() and (slope[~torch.eye(6).bool()] > 0).all()
    assert slope.sum().abs() < (1e-12 if exact else 1e-3) * slope.abs().sum()


def test_both_directions_have_one_total():
    features, data = embeddings(6, 6), batch(range(6), range(6))
    sums = [losses_of(ONE, features, data, Identity(), side).sum() for side in ("query", "key")]
    assert_same(*sums, features)
    task = Align(targets=Identity(), terms=(Term(objective=ONE),))
    assert_same(task.loss(features, data, 0, 1).total, sums[0], features)
    assert not task.reads_scale


@pytest.mark.parametrize("exact", [0, 2**26])
def test_corners(exact, monkeypatch):
    monkeypatch.setattr(mann_whitney, "EXACT", exact)
    for size in (0, 1):  # no negatives at all
        features = embeddings(size, size)
        loss = losses(features)
        assert loss.tolist() == [0] * size
        assert gradients(loss.sum(), features)[0].eq(0).all()
    features = embeddings(3, 3)  # the second has none but what the others give
    captions = batch(range(3), range(3), caption=([0, 1, 0], [0, 0, 0]))
    loss = losses_of(ONE, features, captions, Identity(same=("caption",)))
    assert (loss > 0).tolist() == [True, True, True]
    alone = losses_of(ONE, features, batch([90, 1, 2], range(3)), Identity())
    assert alone[0] == 0 and (gradients(alone.sum(), features)[0][0] != 0).all()


def test_bf16_rows_give_the_loss_of_their_fp32_cast(pooled):
    halves = embeddings(9, 9, dtype=torch.bfloat16)
    singles = Embeddings(*(x.detach().float() for x in leaves(halves)))
    doubles = Embeddings(*(x.double() for x in leaves(singles)))
    assert losses(halves).dtype is torch.float32 and torch.equal(losses(halves), losses(singles))
    torch.testing.assert_close(losses(singles).double(), losses(doubles), atol=1e-5, rtol=1e-5)


def test_pooled_it_never_forms_the_table(pooled, monkeypatch):
    monkeypatch.setattr(mann_whitney, "BINS", 64)
    features, rows = embeddings(96, 96), range(96)
    with Largest() as largest:
        losses_of(ONE, features, batch(rows, rows), Identity(), tile=(16, 24)).sum().backward()
    assert largest.numbers <= 96 * 4 * 2


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        MannWhitney(temperature=0)
