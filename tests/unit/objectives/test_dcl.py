import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, losses_of, rows_of
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.identity import Identity


def naive(scores: Tensor, cosines: Tensor, sigma: float | None = None) -> Tensor:
    """One row at a time; the positive of row i is key i."""
    rows = len(scores)
    losses = []
    for at in range(rows):
        negatives = sum(scores[at][other].exp() for other in range(scores.shape[1]) if other != at).log()
        weight = 1.0
        if sigma is not None:
            average = sum(math.exp(float(cosines[row][row].detach()) / sigma) for row in range(rows)) / rows
            weight = 2 - math.exp(float(cosines[at][at].detach()) / sigma) / average
        losses.append(negatives - weight * scores[at][at])
    return torch.stack(losses)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("sigma", [None, 0.5])
@pytest.mark.parametrize("temperature", [None, 0.2])
def test_equals_a_loop(side, sigma, temperature):
    features, data = embeddings(6, 6), batch(range(6), range(6))
    cosines = features.query @ features.key.T
    cosines = cosines if side == "query" else cosines.T
    scores = logits(features, side) if temperature is None else cosines / temperature
    reference = naive(scores, cosines, sigma)
    mine = losses_of(DCL(sigma=sigma, temperature=temperature), features, data, Identity(), side)
    torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    assert_same(mine.square().sum(), reference.square().sum(), features)


def test_is_info_nce_plus_the_log_of_one_minus_p():
    features, data = embeddings(6, 6), batch(range(6), range(6))
    contrast = losses_of(InfoNCE(), features, data, Identity())
    decoupled = losses_of(DCL(), features, data, Identity())
    assert_same(decoupled.sum(), (contrast + (1 - (-contrast).exp()).log()).sum(), features)


def test_info_nce_has_its_gradient_times_one_minus_p():
    features, data = embeddings(1, 6), batch([0], range(6))
    contrast = losses_of(InfoNCE(), features, data, Identity()).sum()
    decoupled = losses_of(DCL(), features, data, Identity()).sum()
    shared = torch.autograd.grad(contrast, features.query, retain_graph=True)[0]
    own = torch.autograd.grad(decoupled, features.query)[0]
    torch.testing.assert_close(shared, (1 - (-contrast).exp()) * own)


def test_the_weights_of_dclw_average_one_and_have_no_gradient():
    features, data = embeddings(8, 8), batch(range(8), range(8))
    plain, weighted = DCL(), DCL(sigma=0.5)
    rows = rows_of(weighted, features, data, Identity())
    weights = (rows["negatives"] - weighted(rows)) / rows["positive"]
    torch.testing.assert_close(weights.mean(), torch.ones_like(weights.mean()))
    slope = torch.autograd.grad(weighted(rows)[0], features.bias, retain_graph=True)[0]
    torch.testing.assert_close(slope, 1 - weights[:1].detach())
    assert plain.reductions["positive"] == weighted.reductions["positive"]


def test_adding_a_constant_to_a_row_changes_only_dclw():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    loss = losses_of(DCL(), features, data, Identity()).sum()
    assert torch.autograd.grad(loss, features.bias)[0].abs() < 1e-12


def test_rows_without_positives_do_not_enter_the_average():
    features = embeddings(5, 4)
    few = losses_of(DCL(sigma=0.5), features, batch([0, 1, 2, 3, 90], range(4)), Identity())
    cut = replace(features, query=features.query[:4])
    torch.testing.assert_close(few[:4], losses_of(DCL(sigma=0.5), cut, batch(range(4), range(4)), Identity()))
    assert few[4] == 0


def test_one_row_has_no_negatives_and_nothing_to_learn():
    features, data = embeddings(1, 1), batch([0], [0])
    loss = losses_of(DCL(sigma=0.5), features, data, Identity())
    assert loss.tolist() == [0] and torch.autograd.grad(loss.sum(), features.query)[0].eq(0).all()


@pytest.mark.parametrize("field", ["sigma", "temperature"])
def test_ranges(field):
    with pytest.raises(ValueError, match=f"{field} must be > 0, got -1"):
        DCL(**{field: -1.0})
