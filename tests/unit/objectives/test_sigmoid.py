import math

import torch
from torch import Tensor

from tests.unit.ops.worlds import Graded, assert_same, batch, embeddings, logits, losses_of
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings


def naive(scores: Tensor, relevance: Tensor) -> Tensor:
    """One pair at a time."""
    losses = []
    for row, relevant in zip(scores, relevance, strict=True):
        loss = row.sum() * 0
        for score, target in zip(row, relevant, strict=True):
            yes = 1 / (1 + (-score).exp())
            loss = loss - (target * yes.log() + (1 - target) * (1 - yes).log())
        losses.append(loss)
    return torch.stack(losses)


def test_equals_a_loop():
    features, data = embeddings(5, 7), batch(range(5), range(3, 10))
    relevance = Graded().tile({"row": torch.arange(5)[:, None]}, {"row": torch.arange(3, 10)[None]}).double()
    for side in ("query", "key"):
        reference = naive(logits(features, side), relevance if side == "query" else relevance.T)
        mine = losses_of(Sigmoid(), features, data, Graded(), side)
        torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
        assert_same(mine.square().sum(), reference.square().sum(), features)


def test_equals_the_formula_of_the_paper():
    features, data = embeddings(6, 6), batch(range(6), range(6))
    signs = 2 * torch.eye(6) - 1
    reference = -torch.nn.functional.logsigmoid(signs * logits(features)).sum()
    assert_same(losses_of(Sigmoid(), features, data, Identity()).sum(), reference, features)


def test_both_directions_have_one_total():
    features, data = embeddings(4, 6), batch(range(4), range(6))
    query, key = (losses_of(Sigmoid(), features, data, Identity(), side).sum() for side in ("query", "key"))
    assert_same(query, key, features)


def test_a_row_without_positives_still_has_its_negatives():
    features, data = embeddings(2, 2), batch([0, 90], [0, 1])
    losses = losses_of(Sigmoid(), features, data, Identity())
    torch.testing.assert_close(losses[1], torch.nn.functional.softplus(logits(features)[1]).sum())


def test_a_soft_target_at_the_corner_is_the_hard_one():
    features, data = embeddings(4, 6), batch(range(4), range(6))
    hard, soft = (losses_of(Sigmoid(), features, data, t).sum() for t in (Identity(), Graded(corner=True)))
    assert_same(hard, soft, features)


def test_certain_pairs_cost_nothing_and_wrong_ones_their_logit():
    features = Embeddings(torch.eye(2), torch.eye(2), torch.tensor([200.0]), torch.tensor([-100.0]))
    right, wrong = batch([0, 1], [0, 1]), batch([0, 1], [1, 0])
    assert losses_of(Sigmoid(), features, right, Identity()).sum() < 1e-40
    assert losses_of(Sigmoid(), features, wrong, Identity()).tolist() == [200, 200]


def test_at_zero_every_pair_costs_log_two():
    features = Embeddings(torch.eye(3), torch.eye(3), torch.zeros(1), torch.zeros(1))
    losses = losses_of(Sigmoid(), features, batch(range(3), range(3)), Identity())
    torch.testing.assert_close(losses, torch.full((3,), 3 * math.log(2)))
