from operator import mul

import pytest
import torch

from vlalign.evals.metrics.pooled_auc import auc, hardest, pooled
from vlalign.evals.metrics.ranks import TIE, count, mrr, shared
from vlalign.types import UserError


def draw(seed, *shape, values=None):
    generator = torch.Generator().manual_seed(seed)
    if values:
        return torch.randint(0, values, shape, generator=generator).double()
    return torch.randn(*shape, generator=generator).double()


def mann_whitney(positive, negative):
    """U / (n+ n-), one comparison at a time."""
    wins = [(p > n) + 0.5 * (p == n) for p in positive.tolist() for n in negative.tolist()]
    return sum(wins) / len(wins)


def best_f1(positive, negative):
    """Over every threshold that changes anything."""
    found = []
    for threshold in {*positive.tolist(), *negative.tolist()}:
        right, wrong = int((positive >= threshold).sum()), int((negative >= threshold).sum())
        found.append(2 * right / (right + wrong + len(positive)))
    return max(found)


@pytest.mark.parametrize("values", [None, 4])  # 4 values: nearly all scores tie with some
@pytest.mark.parametrize("seed", range(4))
def test_auc_and_f1_against_loops(seed, values):
    positive, negative = draw(seed, 23, values=values), draw(seed + 9, 41, values=values) - 0.5 * (not values)
    found = auc(positive, negative)
    steps = [(scores / TIE).round() for scores in (positive, negative)]
    assert found["auc"] == pytest.approx(mann_whitney(*steps), abs=1e-12)
    assert found["f1"] == pytest.approx(best_f1(*steps), abs=1e-12)
    right, wrong = (int((scores >= found["threshold"] - TIE / 2).sum()) for scores in (positive, negative))
    assert 2 * right / (right + wrong + len(positive)) == pytest.approx(found["f1"], abs=1e-12)


def test_by_hand():
    one, two = torch.tensor([0.9, 0.5]), torch.tensor([0.5, 0.1])
    assert auc(one, two) == pytest.approx({"auc": 0.875, "f1": 0.8, "threshold": 0.5})
    assert auc(one, two - 1) == pytest.approx({"auc": 1.0, "f1": 1.0, "threshold": 0.5})
    assert auc(two - 1, one)["auc"] == 0
    alike = auc(torch.zeros(3), torch.zeros(7))  # all are called right, or none
    assert alike["auc"] == 0.5 and alike["f1"] == pytest.approx(2 * 3 / (2 * 3 + 7))


def test_scores_that_differ_by_rounding_tie():
    value = 0.123456  # the middle of what rounds to it
    assert auc(torch.tensor([value + 1e-8]), torch.tensor([value - 1e-8]))["auc"] == 0.5
    assert auc(torch.tensor([value + 3e-6]), torch.tensor([value]))["auc"] == 1.0


def test_an_offset_of_a_query_changes_it_and_no_rank():
    scores, right = draw(0, 12, 30), torch.eye(12, 30, dtype=torch.bool)
    moved = scores + 3 * draw(1, 12, 1)
    before, after = (auc(*hardest(each, right, 5)) for each in (scores, moved))
    assert mrr(count(scores, right)) == mrr(count(moved, right))
    assert abs(before["auc"] - after["auc"]) > 0.02 and before["f1"] != after["f1"]
    everyones = auc(*hardest(scores + 3, right, 5))
    assert everyones["auc"] == before["auc"] and everyones["f1"] == before["f1"]
    assert everyones["threshold"] == pytest.approx(before["threshold"] + 3, abs=2 * TIE)


def naive(query, key, query_group, key_group, negatives):
    """Sorted lists of right and of the hardest wrong scores."""
    positive, negative = [], []
    for row, ids in zip(query.double().tolist(), query_group.reshape(len(query), -1).tolist(), strict=True):
        scores = [sum(map(mul, row, other)) for other in key.double().tolist()]
        marks = [bool({*ids} & {*others}) for others in key_group.reshape(len(key), -1).tolist()]
        positive += [s for s, mark in zip(scores, marks, strict=True) if mark]
        wrong = [s for s, mark in zip(scores, marks, strict=True) if not mark]
        negative += sorted(wrong, reverse=True)[:negatives]
    return sorted(positive), sorted(negative)


@pytest.mark.parametrize("negatives", [1, 3, 500])
@pytest.mark.parametrize("block", [1, 4, 64])
def test_pools_are_those_of_a_loop_at_any_block(negatives, block):
    query, key = draw(2, 10, 6).float(), draw(3, 20, 6).float()
    # every key is right for the queries of 3
    groups = torch.arange(10) % 5, torch.stack([torch.arange(20) % 7, torch.full((20,), 3)], 1)
    found = pooled(query, key, *groups, negatives, block)
    for scores, wanted in zip(found, naive(query, key, *groups, negatives), strict=True):
        assert scores.sort().values.tolist() == pytest.approx(wanted, abs=1e-12)
    assert len(found[0]) == shared(*groups).sum() and len(found[1]) <= 10 * negatives


def test_pairs_of_one_kind_alone_are_refused():
    query = torch.ones(3, 2)
    with pytest.raises(UserError, match="right and wrong pairs, found 9 and 0"):
        auc(*pooled(query, query, torch.zeros(3), torch.zeros(3), 500))
    with pytest.raises(UserError, match="found 0 and 3"):
        auc(torch.zeros(0), torch.zeros(3))


def test_bfloat16_rows_are_tolerated():
    query, key = (torch.nn.functional.normalize(draw(seed, 40, 16), dim=1) for seed in (4, 5))
    ids = torch.arange(40), torch.arange(40)
    whole, half = (auc(*pooled(query.to(t), key.to(t), *ids, 10)) for t in (torch.float64, torch.bfloat16))
    assert half["auc"] == pytest.approx(whole["auc"], abs=0.02)
