from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import batch, embeddings, gradients, logits, rows_of
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Context, Embeddings
from vlalign.weighters.focal import Focal


def weigh(focal: Focal, features: Embeddings, objective=InfoNCE(), ids=range(5)) -> tuple[Tensor, Tensor]:
    """Weights, and the losses that they multiply."""
    rows = rows_of(objective, features, batch(ids, range(5)), Identity())
    losses = torch.where(rows.valid, objective(rows), 0)
    return focal(losses, Context({}, rows, 0, 1)), losses


def naive(features: Embeddings, gamma: float) -> Tensor:
    """One row at a time."""
    weights = []
    for at, row in enumerate(logits(features)):
        p = row[at].exp() / sum(score.exp() for score in row)
        weights.append((1 - p) ** gamma)
    return torch.stack(weights)


@pytest.mark.parametrize("objective", [InfoNCE(), DCL(), InfoNCE(label_smoothing=0.1)])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_equals_a_loop_whatever_the_objective(objective, gamma):
    features = embeddings(5, 5)
    weights, _ = weigh(Focal(gamma=gamma), features, objective)
    torch.testing.assert_close(weights, naive(features, gamma).detach(), atol=1e-10, rtol=1e-10)


def test_gamma_zero_is_unweighted():
    weights, _ = weigh(Focal(gamma=0.0), embeddings(5, 5))
    assert weights.tolist() == [1] * 5


def test_p_is_at_the_objectives_own_temperature():
    features = embeddings(5, 5)
    weights, losses = weigh(Focal(gamma=1.0), features, InfoNCE(temperature=0.2))
    torch.testing.assert_close(weights, 1 - (-losses).exp().detach())


def test_a_surer_row_weighs_less():
    weights, losses = weigh(Focal(gamma=2.0), embeddings(5, 5))
    assert torch.equal(weights.argsort(), losses.argsort())
    assert ((weights >= 0) & (weights <= 1)).all()


def test_normalized_weights_average_one_over_valid_rows():
    features = embeddings(5, 5)
    weights, _ = weigh(Focal(gamma=2.0, normalized=True), features, ids=[0, 1, 2, 3, 90])
    torch.testing.assert_close(weights[:4].mean(), torch.ones_like(weights[0]))


def test_the_weight_itself_learns_only_when_told():
    features = embeddings(5, 5)
    for detached in (True, False):
        weights, losses = weigh(Focal(gamma=2.0, detached=detached), features)
        reference = naive(features, 2.0)
        reference = reference.detach() if detached else reference
        mine = gradients((weights * losses).sum(), features)
        for slope, other in zip(mine, gradients((reference * losses).sum(), features), strict=True):
            torch.testing.assert_close(slope, other, atol=1e-10, rtol=1e-10)


def test_a_certain_row_has_a_finite_gradient():
    features = embeddings(5, 5)
    with torch.no_grad():
        features.query.copy_(torch.eye(5, 4, dtype=torch.float64))
        features.key.copy_(features.query)
    features = replace(features, scale=torch.tensor([1e4], dtype=torch.float64, requires_grad=True))
    weights, losses = weigh(Focal(gamma=0.5, detached=False), features)
    assert all(slope.isfinite().all() for slope in gradients((weights * losses).sum(), features))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="gamma must be >= 0, got -1.0"):
        Focal(gamma=-1.0)
    with pytest.raises(ValueError, match="reads the reductions 'positive' .* names loss"):
        weigh(Focal(), embeddings(5, 5), Sigmoid())
