import itertools
import math

import pytest
import torch

from vlalign.evals.metrics.ranks import (
    Ranks,
    count,
    hits,
    level,
    mrr,
    places,
    rank,
    rank_both,
    recall,
    shared,
    summary,
)


def orders(scores, right):
    """Every order that sorting by score allows, ties in any order: lists of whether each place is right."""
    groups = [[i for i, s in enumerate(scores) if s == value] for value in sorted(set(scores), reverse=True)]
    for parts in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [right[i] for part in parts for i in part]


def brute(scores, right, of):
    """Mean over queries and over all orders of a function of the first right place, from 1."""
    per_query = []
    for row, marks in zip(scores, right, strict=True):
        found = [of(order.index(True) + 1) for order in orders(row, marks)]
        per_query.append(sum(found) / len(found))
    return sum(per_query) / len(per_query)


@pytest.mark.parametrize("seed", range(8))
def test_every_metric_is_the_mean_over_all_orders_of_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (5, 6), generator=generator).double()  # few values: many ties
    right = torch.rand(5, 6, generator=generator) < 0.4
    right[torch.arange(5), torch.randint(0, 6, (5,), generator=generator)] = True
    ranks = count(scores, right)
    lists = scores.tolist(), right.tolist()
    for k in (1, 2, 3, 5, 6, 10):
        assert recall(ranks, k) == pytest.approx(brute(*lists, lambda place, k=k: place <= k), abs=1e-12)
    assert mrr(ranks) == pytest.approx(brute(*lists, lambda place: 1 / place), abs=1e-12)
    assert places(ranks).mean().item() == pytest.approx(brute(*lists, lambda place: place), abs=1e-12)


def test_five_captions_an_image_without_ties_against_sorting():
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator), dim=1)
    owner = torch.arange(40).repeat_interleave(5)
    text = torch.nn.functional.normalize(image[owner] + torch.randn(200, 8, generator=generator), dim=1)
    for query, key, ids in (
        (image, text, (torch.arange(40), owner)),
        (text, image, (owner, torch.arange(40))),
    ):
        order = (query @ key.T).argsort(1, descending=True)
        first = (ids[0][:, None] == ids[1][order]).double().argmax(1) + 1
        ranks = rank(query, key, *ids, block=7)
        assert places(ranks).tolist() == first.tolist()
        assert recall(ranks, 5) == pytest.approx((first <= 5).double().mean().item(), abs=0)
        assert mrr(ranks) == pytest.approx((1 / first.double()).mean().item(), abs=1e-12)


def test_nothing_depends_on_blocks_or_on_the_order_of_keys():
    generator = torch.Generator().manual_seed(1)
    distinct = torch.nn.functional.normalize(torch.randn(30, 64, generator=generator), dim=1)
    query, key = (
        distinct.repeat(3, 1),
        distinct.repeat(4, 1),
    )  # each query has four equal keys, one of them right
    ids = torch.arange(90) % 30 + 30 * (torch.arange(90) // 30), torch.arange(120)
    whole = rank(query, key, *ids, block=1000)
    assert whole.tied.tolist() == [4] * 90 and whole.right.tolist() == [1] * 90
    shuffle = torch.randperm(120, generator=generator)
    for block in (1, 7, 64):
        for ranks in (
            rank(query, key, *ids, block=block),
            rank(query, key[shuffle], ids[0], ids[1][shuffle], block),
        ):
            assert all(torch.equal(a, b) for a, b in zip(whole, ranks, strict=True))
    assert [recall(whole, k) for k in (1, 2, 4)] == pytest.approx([0.25, 0.5, 1.0], abs=1e-12)


@pytest.mark.parametrize("groups", ["rows", "captions", "concepts", "several"])
@pytest.mark.parametrize("block", [1, 7, 64])
def test_both_ways_at_once_are_each_way_alone(groups, block):
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(12, 8, generator=generator), dim=1)
    image = directions[torch.randint(0, 12, (30,), generator=generator)]  # many ties
    text = directions[torch.randint(0, 12, (150,), generator=generator)]
    owner, several = torch.arange(150) // 5, torch.randint(0, 400, (30, 3), generator=generator)
    several[:, 0] = torch.arange(30) + 400
    query, key = {
        "rows": (torch.arange(30), torch.arange(150) % 30),
        "captions": (torch.arange(30), owner),
        "concepts": (torch.arange(30) % 3, owner % 3),  # dense
        "several": (several, several[owner].flip(1)),
    }[groups]
    found = rank_both(image, text, query, key, block)
    for ranks, wanted in zip(
        found, (rank(image, text, query, key), rank(text, image, key, query)), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(ranks, wanted, strict=True))


def test_chance_is_what_a_collapsed_model_gets_and_what_counting_gives():
    query_group, key_group = torch.arange(6), torch.arange(6).repeat_interleave(5)
    chance = level(query_group, key_group, block=4)
    collapsed = rank(torch.ones(6, 4), torch.ones(30, 4), query_group, key_group)
    assert summary(chance) == summary(collapsed)
    for k in (1, 5, 10):
        assert recall(chance, k) == pytest.approx(1 - math.comb(25, k) / math.comb(30, k), abs=1e-12)
    one = level(torch.arange(370), torch.arange(370))
    assert recall(one, 10) == pytest.approx(10 / 370, abs=1e-12)
    assert summary(one)["median_rank"] == 185.5


def test_rows_with_several_ids_share_any_of_them():
    query, key = torch.tensor([[1, 2], [3, 3]]), torch.tensor([2, 3, 4, 1])
    assert shared(query, key).tolist() == [[True, False, False, True], [False, True, False, False]]
    assert torch.equal(shared(key, query), shared(query, key).T)


def test_hits_are_exactly_zero_or_one_without_ties():
    ranks = Ranks(torch.tensor([0, 4, 5, 5]), torch.tensor([1, 1, 1, 3]), torch.tensor([1, 1, 1, 3]))
    assert hits(ranks, 5).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert hits(ranks, 6).tolist() == [1.0, 1.0, 1.0, 1.0]


def test_a_query_without_a_right_key_is_refused():
    with pytest.raises(ValueError, match="1 of 2 queries have no right key, or a score"):
        rank(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 9]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="1 of 3 queries have no right key, or a score"):
        rank_both(torch.ones(2, 3), torch.ones(3, 3), torch.arange(2), torch.arange(3))


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 of 2 queries"):
        rank(torch.tensor([[torch.nan], [1.0]]), torch.ones(2, 1), torch.arange(2), torch.arange(2))
