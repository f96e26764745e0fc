from collections import Counter
from math import ceil, floor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.data.splits import held_out, keeps

strata = st.dictionaries(st.text(min_size=1, max_size=6), st.sampled_from("abcde"), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(strata, st.floats(0.01, 0.99), st.integers(0, 1000))
def test_every_stratum_gives_its_share(groups, fraction, seed):
    unseen = held_out(groups, fraction, seed)
    sizes, taken = Counter(groups.values()), Counter(groups[group] for group in unseen)
    for stratum, size in sizes.items():
        assert floor(size * fraction - 1e-6) <= taken[stratum] <= ceil(size * fraction + 1e-6)
    assert floor(len(groups) * fraction - 1e-6) <= len(unseen) <= ceil(len(groups) * fraction + 1e-6)


@settings(max_examples=50, deadline=None)
@given(strata, st.integers(0, 1000))
def test_the_order_of_the_groups_does_not_matter(groups, seed):
    assert held_out(groups, 0.3, seed) == held_out(dict(reversed(groups.items())), 0.3, seed)


def test_seeds_differ_and_every_group_has_its_turn():
    groups = {str(number): "ab"[number % 2] for number in range(100)}
    splits = [held_out(groups, 0.2, seed) for seed in range(60)]
    assert len(set(splits)) == 60
    assert set.union(*map(set, splits)) == set(groups)


def test_rows_go_to_one_side():
    unseen = frozenset("a")
    assert [keeps(split, group, unseen) for split in ("train", "unseen", "all") for group in "ab"] == [
        False, True, True, False, True, True,
    ]  # fmt: skip
    with pytest.raises(ValueError, match="between 0 and 1, got 2"):
        held_out({"a": "b"}, 2, 0)
