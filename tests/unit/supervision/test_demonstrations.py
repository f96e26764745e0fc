"""What is nearest, by loops: whatever the store's order, never what is excluded, fair to classes."""

from math import ceil, sqrt

import pytest
import torch
from torch.nn.functional import normalize

from vlalign.supervision.demonstrations import fused, nearest, vote


def world(rows=3, size=20, dim=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    query, store = (torch.randn(n, dim, generator=random, dtype=torch.float64) for n in (rows, size))
    ids = torch.randperm(10 * size, generator=random)[:size]
    return query, store, ids, torch.randint(3, (size,), generator=random)


def far(one, other, metric):
    if metric == "euclidean":
        return sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)))
    sizes = [sqrt(sum(a * a for a in each)) for each in (one, other)]
    return 1 - sum(a * b for a, b in zip(one, other, strict=True)) / (sizes[0] * sizes[1])


def naive(query, store, ids, k, metric, exclude=(), labels=None):
    """Ids and distances of each query, the nearest last."""
    found = []
    for one in query.tolist():
        every = zip(store.tolist(), ids.tolist(), labels.tolist() if labels is not None else ids, strict=True)
        ranked = sorted((far(one, x, metric), id, label) for x, id, label in every if id not in exclude)
        if labels is not None:
            most = ceil(k / len({label for *_, label in ranked}))
            held = [[each for each in ranked if each[2] == label][:most] for label in range(3)]
            ranked = sorted(each for own in held for each in own)
        found.append([(id, d) for d, id, _ in ranked[:k]][::-1])
    return found


@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_is_a_loop_over_the_store(metric, fair, k):
    query, store, ids, labels = world()
    exclude, own = ids[:4], labels if fair else None
    found, distances = nearest(query, store, ids, k, metric=metric, exclude=exclude, labels=own)
    wanted = naive(query, store, ids, k, metric, exclude.tolist(), own)
    assert found.tolist() == [[id for id, _ in each] for each in wanted]
    told = torch.tensor([[d for _, d in each] for each in wanted], dtype=torch.float64)
    torch.testing.assert_close(distances, told)
    assert (distances.diff(dim=1) <= 0).all()  # the most similar last
    assert not torch.isin(found, exclude).any()
    if fair:
        of = dict(zip(ids.tolist(), labels.tolist(), strict=True))
        rows = [[of[id] for id in each] for each in found.tolist()]
        assert all(row.count(label) <= ceil(k / 3) for row in rows for label in range(3))


def test_on_unit_rows_both_metrics_rank_alike_and_elsewhere_not():
    query, store, ids, _ = world(rows=8)
    both = [nearest(query, store, ids, 20, metric=each)[0] for each in ("euclidean", "cosine")]
    assert not torch.equal(*both)
    query, store = normalize(query), normalize(store)
    found, distances = nearest(query, store, ids, 20)
    other, angles = nearest(query, store, ids, 20, metric="cosine")
    assert torch.equal(found, other)
    torch.testing.assert_close(distances.square(), 2 * angles)


def test_none_and_all():
    query, store, ids, labels = world()
    for own in (None, labels):
        found, distances = nearest(query, store, ids, 0, labels=own)
        assert found.shape == distances.shape == (3, 0)
        found, _ = nearest(query, store, ids, 1000, labels=own)
        assert found.sort().values.tolist() == [sorted(ids.tolist())] * 3
        found, _ = nearest(query, store, ids, 4, exclude=ids, labels=own)
        assert found.shape == (3, 0)
    with pytest.raises(ValueError, match="k must be >= 0, got -1"):
        nearest(query, store, ids, -1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_rows_are_told_apart_by_their_ids_wherever_they_stand(metric):
    query, store, ids, labels = world(rows=2, size=60, dim=37)
    store, query = store.float(), query.float()
    store[::3] = query[0]  # 20 equal ones
    first = nearest(query, store, ids, 7, metric=metric, labels=labels)[0]
    equal = nearest(query[:1], store, ids, 7, metric=metric)[0]
    assert equal.tolist() == [sorted(ids[::3].tolist())[:7][::-1]]
    for seed in range(5):
        order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
        again = nearest(query, store[order], ids[order], 7, metric=metric, labels=labels[order])[0]
        assert torch.equal(again, first)


def test_a_part_that_weighs_nothing_is_ignored():
    query, store, ids, _ = world()
    others = [torch.randn(len(each), 3, dtype=torch.float64) for each in (query, store)]
    alone = nearest(query, store, ids, 6)
    sides = zip((query, store), others, strict=True)
    both = [fused([x, other], [1.0, 0.0]) for x, other in sides]
    for found, wanted in zip(nearest(*both, ids, 6), alone, strict=True):
        torch.testing.assert_close(found, wanted)
    sides = zip((query, store), others, strict=True)
    mixed = nearest(*(fused([x, other], [0.5, 2.0]) for x, other in sides), ids, 1)[1]
    parts = [torch.cdist(*each).square() for each in ((query, store), others)]
    torch.testing.assert_close(mixed[:, 0], (parts[0] / 4 + 4 * parts[1]).sqrt().min(1).values)


def test_a_vote_is_the_share_of_right_ones_by_nearness():
    right, distances = torch.tensor([[True, False, False], [True, True, True]]), torch.rand(2, 3) + 0.1
    found = vote(right, distances)
    wanted = (1 / distances[0, 0]) / sum(1 / each for each in distances[0])
    torch.testing.assert_close(found, torch.stack([wanted, torch.tensor(1.0)]))
    told = vote(torch.tensor([True, False]), torch.tensor([0.7, 0.0], dtype=torch.float64))
    assert told.item() < 1e-9  # the very same one decides
    assert vote(torch.zeros(2, 0, dtype=torch.bool), torch.zeros(2, 0)).tolist() == [0.5, 0.5]
