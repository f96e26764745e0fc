"""Batches by cluster, compared with the rule that they follow, one row at a time."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.data.clusters import Clusters, most_batches
from vlalign.data.sampler import Order
from vlalign.data.samplers.clustered import Clustered
from vlalign.types import RecipeError

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=14)


def labelled(sizes, seed=0):
    """So many rows of each label, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(10 * np.arange(len(sizes)) + 7, sizes))


def batches(labels, batch, mode="exclusive", epoch=0, seed=0, **fields):
    made = Order(
        sampler=Clustered(by="cluster", mode=mode, **fields),
        rows=len(labels),
        batch=batch,
        seed=seed,
        labels=labels,
    )
    rows = made.epoch(epoch)
    assert len(rows) == made.bounds[-1]
    return np.split(rows, made.bounds[1:-1]), made


def longest_first(sizes, batch):
    """How many full batches the rule gives, a step at a time."""
    left, steps = sorted(sizes, reverse=True), 0
    while len(left) >= batch:
        left = sorted([size - 1 for size in left[:batch] if size > 1] + left[batch:], reverse=True)
        steps += 1
    return steps


@settings(max_examples=150, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(0, 2))
def test_exclusive_batches_are_as_many_as_can_be_and_repeat_no_cluster_and_no_row(sizes, batch, seed):
    bound = max(t for t in range(sum(sizes) + 1) if sum(min(size, t) for size in sizes) >= batch * t)
    assert most_batches(np.array(sizes), batch) == longest_first(sizes, batch) == bound
    if len(sizes) < batch:
        return
    labels = labelled(sizes)
    found, made = batches(labels, batch, seed=seed)
    assert made.steps == bound and [len(rows) for rows in found] == [batch] * bound
    assert all(len(set(labels[rows])) == batch for rows in found)
    seen = np.concatenate(found)
    assert len(set(seen.tolist())) == len(seen)


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 5))
def test_the_rule_takes_from_those_that_have_most_left(sizes, batch):
    """Of a batch, nobody else had more rows left than the least of the chosen."""
    random = np.random.default_rng(0)
    labels = labelled(sizes)
    left = Counter(labels.tolist())
    for rows in Clusters.of(labels, random).exclusive(batch, random):
        chosen = labels[rows].tolist()
        others = [left[label] for label in left if label not in chosen]
        assert min(left[label] for label in chosen) >= max(others, default=0) and len(set(chosen)) == batch
        left.subtract(chosen)


def test_ties_are_random_and_even():
    labels = labelled([1] * 6)
    first = Counter()
    for seed in range(600):
        random = np.random.default_rng(seed)
        first.update(labels[Clusters.of(labels, random).exclusive(2, random)[0]].tolist())
    assert len(first) == 6 and all(150 < count < 250 for count in first.values())


def test_what_is_left_of_a_tie_is_still_random():
    """Of four clusters two give a row, then the other two; by whom each is joined is drawn anew."""
    labels, pairs = labelled([3] * 4), Counter()
    for seed in range(300):
        random = np.random.default_rng(seed)
        steps = [
            frozenset(labels[rows].tolist()) for rows in Clusters.of(labels, random).exclusive(2, random)
        ]
        assert len(steps) == 6 and all(not steps[at] & steps[at + 1] for at in (0, 2, 4))
        pairs.update([(steps[0] == steps[2]) or (steps[0] == steps[3])])
    assert 50 < pairs[True] < 150  # a third: pairs of four are matched anew in each round


@pytest.mark.parametrize("mode", ["exclusive", "inclusive"])
def test_an_order_is_that_of_its_seed_and_epoch(mode):
    labels = labelled([9, 14, 8, 8, 20])
    orders = [batches(labels, 4, mode, epoch, seed)[1].epoch(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(rows) for rows in orders}) == 4
    assert np.array_equal(orders[3], batches(labels, 4, mode, 1, 1)[1].epoch(1))
    assert len({tuple(batches(labels, 4, mode, 0, seed)[1].bounds) for seed in range(3)}) == 1


def test_clusters_of_one_row_are_random_batches():
    labels = np.arange(60)
    together = Counter()
    for seed in range(400):
        found, made = batches(labels, 10, seed=seed)
        assert sorted(np.concatenate(found)) == list(range(60)) and made.left_out == ""
        together.update([sum({0, 1} <= set(rows) for rows in found)])
    assert pytest.approx(together[1], abs=30) == 400 * 9 / 59  # the chance that two rows share a batch


def test_every_row_is_dropped_as_often_as_another_of_its_cluster():
    labels = np.array([0] * 3 + [1] * 3 + [2] * 10)
    seen = Counter()
    for epoch in range(300):
        found, made = batches(labels, 3, epoch=epoch)
        seen.update(np.concatenate(found).tolist())
    assert made.steps == 3 and all(seen[row] == 300 for row in range(6))
    assert all(50 < seen[row] < 130 for row in range(6, 16))  # 3 of 10


@settings(max_examples=60, deadline=None)
@given(SIZES, st.integers(1, 5))
def test_what_is_left_over_is_spilled_at_the_end_and_told(sizes, batch):
    if len(sizes) < batch:
        return
    labels, full = labelled(sizes), most_batches(np.array(sizes), batch)
    found, made = batches(labels, batch, leftover="spill")
    assert sorted(np.concatenate(found)) == list(range(len(labels)))
    left = len(labels) - full * batch
    whole = full - (0 < left < batch / 2)  # a short end shares with the last full batch
    assert [len(set(labels[rows])) for rows in found[:whole]] == [batch] * whole
    assert all(batch // 2 <= len(rows) <= batch for rows in found)
    told = f"data.sampler: {left} of {len(labels)} rows are spilled"
    assert made.left_out.startswith(told) if left else made.left_out == ""
    dropped = batches(labels, batch)[1].left_out
    assert (
        dropped.startswith(f"data.sampler: {left} of {len(labels)} rows come in no") if left else not dropped
    )


@pytest.mark.parametrize(
    ("rows", "sizes"),
    [
        (1024, [256] * 4),
        (1025, [256] * 3 + [129, 128]),
        (1151, [256] * 3 + [192, 191]),
        (1152, [256] * 4 + [128]),
        (257, [129, 128]),
    ],
)
def test_no_spilled_batch_is_smaller_than_half_of_one(rows, sizes):
    labels = np.minimum(np.arange(rows), rows // 256 * 256 - 1)  # the last of so many clusters has the rest
    found, made = batches(labels, 256, leftover="spill")
    assert [len(batch) for batch in found] == sizes and made.smallest >= 128
    assert all(len(set(labels[batch])) == len(batch) for batch in found[: rows // 256])


@settings(max_examples=100, deadline=None)
@given(SIZES, st.integers(1, 6), st.integers(0, 2))
def test_inclusive_batches_have_one_cluster_and_drop_less_than_a_batch_of_each(sizes, batch, seed):
    if max(sizes) < batch:
        return
    labels = labelled(sizes)
    found, made = batches(labels, batch, "inclusive", seed=seed)
    assert [len(rows) for rows in found] == [batch] * sum(size // batch for size in sizes)
    assert all(len(set(labels[rows])) == 1 for rows in found)
    seen = np.concatenate(found)
    assert len(set(seen.tolist())) == len(seen)
    kept = Counter(labels[seen].tolist())
    assert all(size - kept[label] == size % batch for label, size in Counter(labels.tolist()).items())


def test_inclusive_batches_tell_what_they_drop():
    told = batches(labelled([10, 3, 2, 9]), 4, "inclusive")[1].left_out
    assert told.startswith("data.sampler: 8 of 24 rows come in no batch of an epoch: what each 'cluster'")
    assert told.endswith("2 of 4 have fewer rows than a batch, and these 5 rows are never learned from")
    assert batches(labelled([8, 4]), 4, "inclusive")[1].left_out == ""


def test_one_cluster_is_shuffled_batches():
    found, _ = batches(np.zeros(22, int), 5, "inclusive")
    again, _ = batches(np.zeros(22, int), 5, "inclusive", epoch=1)
    assert len(found) == 4 and len(set(np.concatenate(found).tolist())) == 20
    assert [sorted(rows) for rows in found] != [sorted(rows) for rows in again]


def test_the_order_of_clusters_is_shuffled_anew_each_epoch():
    labels = labelled([8] * 5)
    orders = {
        tuple(labels[rows[0]] for rows in batches(labels, 4, "inclusive", epoch)[0]) for epoch in range(9)
    }
    assert len(orders) == 9


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(RecipeError, match="batch of 4 each row needs a 'cluster' of its own, and there"):
        batches(labelled([9, 9, 9]), 4)
    with pytest.raises(RecipeError, match="no 'cluster' has the 4 rows of a batch, the largest has 3;"):
        batches(labelled([2, 3]), 4, "inclusive")


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"by": " "}, "by must"), ({"mode": "inclusive", "leftover": "spill"}, "leftover must")],
)
def test_fields_are_checked(fields, told):
    with pytest.raises(ValueError, match=told):
        Clustered(**{"by": "x", "mode": "exclusive"} | fields)
