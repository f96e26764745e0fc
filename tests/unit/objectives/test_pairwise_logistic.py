from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Graded, assert_same, batch, embeddings, gradients, leaves, logits, losses_of
from vlalign.objectives.pairwise_logistic import PairwiseLogistic
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings

QUERY, KEY = [0, 2, 4, 6, 8], range(7)


def naive(scores: Tensor, targets: Tensor) -> Tensor:
    """One row and one pair at a time; 0 without a positive or without a negative."""
    losses = []
    for row, relevance in zip(scores, targets, strict=True):
        positive = (row * relevance).sum() / relevance.sum().clamp(min=1e-9)
        pairs = [(1 + (s - positive).exp()).log() for s, r in zip(row, relevance, strict=True) if r == 0]
        if relevance.sum() == 0 or not pairs:
            losses.append(0 * row.sum())
        else:
            losses.append(sum(pairs) / len(pairs))
    return torch.stack(losses)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_equals_a_loop(side, temperature):
    features, data = embeddings(5, 7), batch(QUERY, KEY)
    targets = Graded().tile({"row": torch.tensor(QUERY)[:, None]}, {"row": torch.arange(7)[None]})
    scores = logits(features) if temperature is None else features.query @ features.key.T / temperature
    turned = (scores, targets) if side == "query" else (scores.T, targets.T)
    mine = losses_of(PairwiseLogistic(temperature=temperature), features, data, Graded(), side)
    assert_same(mine.square().sum(), naive(*turned).square().sum(), features)


def test_the_gradient_is_right_by_finite_differences():
    def losses(*tensors: Tensor) -> Tensor:
        return losses_of(PairwiseLogistic(), Embeddings(*tensors), batch([0, 1, 90], range(4)), Identity())

    assert torch.autograd.gradcheck(losses, leaves(embeddings(3, 4)))


def test_equal_scores_cost_log_two_and_a_constant_of_a_row_nothing():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    flat = replace(features, scale=torch.zeros(1).double())
    loss = losses_of(PairwiseLogistic(), flat, data, Identity())
    torch.testing.assert_close(loss, torch.full_like(loss, 2).log())
    slope = torch.autograd.grad(
        losses_of(PairwiseLogistic(), features, data, Identity()).sum(), features.bias
    )[0]
    assert slope.abs() < 1e-12


def test_a_small_temperature_gives_the_mean_hinge():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    cosines = features.query @ features.key.T
    hinge = (cosines - cosines.diagonal()[:, None]).clamp(min=0).sum(1) / 4
    loss = 1e-6 * losses_of(PairwiseLogistic(temperature=1e-6), features, data, Identity())
    torch.testing.assert_close(loss, hinge, atol=1e-6, rtol=0)


def test_negatives_that_do_not_count_are_not_averaged_over():
    features, data = embeddings(4, 6), batch(range(4), range(6))
    selectors = (FalseNegative(margin=0.0),)
    mine = losses_of(PairwiseLogistic(), features, data, Identity(), selectors=selectors)
    scores = logits(features)
    lower = scores < scores.diagonal()[:, None]
    pairs = (1 + (scores - scores.diagonal()[:, None]).exp()).log()
    torch.testing.assert_close(mine, (pairs * lower).sum(1) / lower.sum(1).clamp(min=1))


def test_one_row_has_no_negatives_and_nothing_to_learn():
    features = embeddings(1, 1)
    loss = losses_of(PairwiseLogistic(), features, batch([0], [0]), Identity())
    assert loss.tolist() == [0] and gradients(loss.sum(), features)[0].eq(0).all()


def test_bf16_rows_are_near_fp64():
    halves, data = embeddings(9, 9, dtype=torch.bfloat16), batch(range(9), range(9))
    doubles = Embeddings(*(x.detach().double() for x in leaves(halves)))
    mine = losses_of(PairwiseLogistic(), halves, data, Identity())
    reference = losses_of(PairwiseLogistic(), doubles, data, Identity())
    assert mine.dtype is torch.float32
    torch.testing.assert_close(mine.double(), reference, atol=1e-5, rtol=1e-5)


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        PairwiseLogistic(temperature=-1.0)
