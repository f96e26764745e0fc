import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Graded, assert_same, batch, embeddings, logits, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings

CAPTIONED = Identity(same=("caption",))


def naive(scores: Tensor, relevance: Tensor, objective: InfoNCE) -> Tensor:
    """One row at a time, one key at a time."""
    losses = []
    for row, relevant in zip(scores, relevance, strict=True):
        total = sum(score.exp() for score in row)
        probabilities = [score.exp() / total for score in row]
        weights = [float(r) for r in relevant]
        if not sum(weights):
            losses.append(0 * row.sum())
            continue
        if objective.positives == "mean_of_logs":
            loss = -sum(w * p.log() for w, p in zip(weights, probabilities, strict=True)) / sum(weights)
        else:
            loss = -sum(w * p for w, p in zip(weights, probabilities, strict=True)).log()
        even = -sum(p.log() for p in probabilities) / len(probabilities)
        losses.append((1 - objective.label_smoothing) * loss + objective.label_smoothing * even)
    return torch.stack(losses)


def scores(features: Embeddings, objective: InfoNCE, side: str) -> Tensor:
    if objective.temperature is None:
        return logits(features, side)
    cosines = features.query @ features.key.T / objective.temperature
    return cosines if side == "query" else cosines.T


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("positives", ["mean_of_logs", "log_of_sum"])
@pytest.mark.parametrize(("smoothing", "temperature"), [(0.0, None), (0.1, None), (0.0, 0.2), (0.3, 0.2)])
def test_equals_a_loop(side, positives, smoothing, temperature):
    objective = InfoNCE(label_smoothing=smoothing, positives=positives, temperature=temperature)
    features, data = embeddings(5, 7), batch(range(5), range(3, 10))
    relevance = Graded().tile({"row": torch.arange(5)[:, None]}, {"row": torch.arange(3, 10)[None]})
    reference = naive(
        scores(features, objective, side), relevance if side == "query" else relevance.T, objective
    )
    mine = losses_of(objective, features, data, Graded(), side)
    if objective.positives == "mean_of_logs":
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    assert_same(mine.square().sum(), reference.square().sum(), features)


def test_without_options_it_is_the_cross_entropy():
    features, data = embeddings(6, 6), batch(range(6), range(6))
    reference = torch.nn.functional.cross_entropy(logits(features), torch.arange(6), reduction="none")
    assert_same(losses_of(InfoNCE(), features, data, Identity()).sum(), reference.sum(), features)


def test_smoothing_is_that_of_the_cross_entropy():
    features, data = embeddings(6, 6), batch(range(6), range(6))
    objective = InfoNCE(label_smoothing=0.2)
    reference = torch.nn.functional.cross_entropy(
        logits(features), torch.arange(6), reduction="sum", label_smoothing=0.2
    )
    assert_same(losses_of(objective, features, data, Identity()).sum(), reference, features)


@pytest.mark.parametrize("positives", ["mean_of_logs", "log_of_sum"])
def test_a_soft_target_at_the_corner_is_the_hard_one(positives):
    objective = InfoNCE(positives=positives)
    features, data = embeddings(4, 6), batch(range(4), range(6))
    hard, soft = (losses_of(objective, features, data, t).sum() for t in (Identity(), Graded(corner=True)))
    assert_same(hard, soft, features)


def test_one_caption_on_two_rows_is_never_pushed_apart():
    features = embeddings(5, 5)
    with torch.no_grad():
        features.key[3] = features.key[1]
    data = batch(range(5), range(5), caption=([0, 1, 2, 1, 4], [0, 1, 2, 1, 4]))
    for side, objective in (
        ("query", InfoNCE(positives="log_of_sum")),
        ("key", InfoNCE(positives="log_of_sum")),
        ("query", InfoNCE()),
    ):
        loss = losses_of(objective, features, data, CAPTIONED, side).sum()
        slope = torch.autograd.grad(loss, features.query)[0]
        pairs = slope_by_pair(features, data, objective, side)
        torch.testing.assert_close(slope, features.scale * pairs @ features.key)
        assert pairs[1, 3] <= 0 and pairs[3, 1] <= 0 and pairs[1, 1] <= 0 and pairs[3, 3] <= 0


def slope_by_pair(features: Embeddings, data: dict, objective: InfoNCE, side: str) -> Tensor:
    """The gradient by each logit, from the loop."""
    table = logits(features).detach().requires_grad_()
    caption = data["query_fields"]["caption"]
    relevance = caption[:, None] == caption
    turned = (table, relevance) if side == "query" else (table.T, relevance.T)
    return torch.autograd.grad(naive(*turned, objective).sum(), table)[0]


def test_its_gradient_by_the_logits_of_a_row_sums_to_zero():
    features, data = embeddings(4, 4), batch(range(4), range(4))
    loss = losses_of(InfoNCE(label_smoothing=0.1), features, data, Identity()).sum()
    assert torch.autograd.grad(loss, features.bias)[0].abs() < 1e-12


def test_its_own_temperature_ignores_scale_and_bias():
    features, data = embeddings(4, 4), batch(range(4), range(4))
    loss = losses_of(InfoNCE(temperature=0.1), features, data, Identity()).sum()
    slopes = torch.autograd.grad(loss, (features.scale, features.bias))
    assert all(slope == 0 for slope in slopes)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("label_smoothing", 1.0, ">= 0 and < 1, got 1.0"), ("temperature", 0.0, "must be > 0, got 0.0")],
)
def test_ranges(field, value, told):
    with pytest.raises(ValueError, match=told):
        InfoNCE(**{field: value})
