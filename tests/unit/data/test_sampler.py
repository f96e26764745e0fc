from collections import Counter
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.data.sampler import Order, parts, share
from vlalign.data.samplers.random import Random


def plain(rows, batch=1, seed=0):
    return Order(sampler=Random(), rows=rows, batch=batch, seed=seed)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 70), st.integers(0, 3))
def test_an_epoch_sees_every_row_once_in_batches_that_are_full_but_for_the_last_two(rows, batch, epoch):
    found = plain(rows, batch)
    steps = found.steps
    spans = [found.span(epoch * steps + place) for place in range(steps)]
    assert {which for which, *_ in spans} == {epoch}
    assert [start for _, start, _ in spans] == [0, *(stop for _, _, stop in spans[:-1])] and spans[-1][
        2
    ] == rows
    sizes = [stop - start for _, start, stop in spans]
    assert all(size == batch for size in sizes[:-2])
    assert max(sizes) <= batch and (steps == 1 or min(sizes) >= batch / 2)
    told = f"data.batch: {batch} rows, the data has {rows}: every step sees all {rows}" * (batch > rows)
    assert found.smallest == min(sizes) and found.left_out == told


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 50), st.integers(1, 200), st.integers(1, 9))
def test_ranks_share_a_batch_without_gap_or_overlap(start, size, world):
    parts = [share(start, start + size, rank, world) for rank in range(world)]
    assert parts[0][0] == start and parts[-1][1] == start + size
    assert all(left[1] == right[0] for left, right in zip(parts, parts[1:], strict=False))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1
    assert size < world or min(b - a for a, b in parts) >= 1


def test_orders_are_permutations_that_differ_by_seed_and_epoch():
    orders = [plain(50, seed=seed).epoch(epoch) for seed in range(3) for epoch in range(3)]
    assert all(sorted(one) == list(range(50)) for one in orders)
    assert len({tuple(one) for one in orders}) == 9
    assert np.array_equal(plain(50, 7, seed=1).epoch(2), orders[5])
    assert np.array_equal(orders[5], np.random.default_rng([1, 2]).permutation(50))


def test_places_are_even_over_epochs():
    first = Counter(int(plain(5).epoch(epoch)[0]) for epoch in range(1000))
    assert max(first.values()) < 260 and min(first.values()) > 140


@pytest.mark.parametrize(
    ("rows", "batch", "sizes"),
    [(50, 16, [16, 16, 9, 9]), (33, 16, [16, 9, 8]), (5, 16, [5]), (32, 16, [16, 16])],
)
def test_sizes(rows, batch, sizes):
    assert [b - a for _, a, b in map(plain(rows, batch).span, range(len(sizes)))] == sizes


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9))
def test_every_rank_has_as_many_chunks_and_none_is_empty(rows, chunk, world):
    rows = max(rows, world)
    count = parts(rows, chunk, world)
    for rank in range(world):
        own = share(0, rows, rank, world)
        sizes = [b - a for a, b in (share(*own, part, count) for part in range(count))]
        assert sum(sizes) == own[1] - own[0] and min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        assert max(sizes) <= chunk or (chunk == 1 and max(sizes) == 2 and rows % world)
    assert count == ceil(ceil(rows / world) / chunk) or (chunk == 1 and rows % world)
    assert parts(rows, None, world) == 1
