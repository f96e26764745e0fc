"""The choice of negatives as plain values, beside slow ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.infer.mining import best, mined
from vlalign.recipe.mining import MineRecipe
from vlalign.registry import SOURCES

DATA = SOURCES.decode({"name": "candidates", "path": "rows.jsonl"})
few = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])  # so that there are ties


def recipe(**fields):
    told = {"out": "out", "model": "m", "data": DATA, "k": 3, "window": (1, 6)}
    return MineRecipe(verb="mine", **(told | fields))


def chosen(scores, positives, likeness=None, same=None, **fields):
    """Documents are called a, b, c, ... in the order of their scores."""
    ranked = [(score, chr(97 + at)) for at, score in enumerate(scores)]
    documents = {id: (same or {}).get(id, id) for _, id in ranked}
    wrong = {f"p{at}": score for at, score in enumerate(positives)}
    return mined(ranked, wrong, documents, lambda id: (likeness or {}).get(id, ""), recipe(**fields))


@given(st.lists(few, min_size=1, max_size=12), st.integers(1, 14), st.randoms())
def test_the_best_are_the_first_of_all_in_order(scores, count, random):
    ids = [f"d{at}" for at in range(len(scores))]
    random.shuffle(ids)
    order = sorted(range(len(scores)), key=lambda at: (scores[at], ids[at]), reverse=True)
    assert best(np.array(scores), ids, count) == order[:count]


def test_a_window_begins_at_its_first_rank():
    found = chosen([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.65], window=(2, 5))
    assert found.negatives == ["b", "c", "d"] and [id for _, id in found.window] == ["b", "c", "d", "e"]
    assert chosen([0.9, 0.8], [0.65], window=(2, 5)).negatives == ["b"]
    assert chosen([0.9], [0.65], window=(2, 5)) == ([], [], ["p0"], {})


def test_a_positive_is_found_down_to_the_last_rank_of_the_window():
    scores = [0.9, 0.8, 0.7]
    for positive, found in ((0.95, True), (0.75, True), (0.7, True), (0.65, False)):
        assert bool(chosen(scores, [positive], window=(2, 3), k=1).found) is found  # p0 is greater than c
    assert chosen(scores, [0.95, 0.1], window=(1, 3)).found == ["p0"]


def test_margins_are_of_the_lowest_positive():
    scores = [0.9, 0.8, 0.75, 0.5, 0.25]
    assert chosen(scores, [1.0, 0.75], margin=0.25).negatives == ["d", "e"]
    assert chosen(scores, [1.0, 0.75], margin=0.0).negatives == ["c", "d", "e"]
    assert chosen(scores, [1.0], relative_margin=0.25).negatives == ["c", "d", "e"]
    assert chosen(scores, [], margin=0.25, relative_margin=0.5).negatives == ["a", "b", "c"]
    assert chosen(scores, [0.75], max_score=0.5).negatives == ["d", "e"]
    found = chosen(scores, [0.75], margin=0.25, relative_margin=0.05, max_score=0.2)
    assert found.excluded == {"margin": 3, "max_score": 2} and found.negatives == []


def test_below_zero_a_relative_margin_still_asks_for_less():
    """p * (1 - r) would lie above p there."""
    scores = [-1.5, -2.0, -2.5, -3.0]
    assert chosen(scores, [-2.0], relative_margin=0.25).negatives == ["c", "d"]
    assert chosen(scores, [-2.0], relative_margin=0.0).negatives == ["b", "c", "d"]


def test_a_stride_begins_again_with_what_it_left():
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    for stride, k, found in ((1, 3, "abc"), (2, 3, "ace"), (2, 5, "abcde"), (5, 3, "abf"), (9, 2, "ab")):
        assert "".join(chosen(scores, [], stride=stride, k=k).negatives) == found
    assert chosen(scores, [], {"a": "same_as_query"}, stride=2).negatives == ["b", "d", "f"]


def test_what_is_left_out_is_counted_by_its_first_reason():
    found = chosen([0.9, 0.8, 0.7, 0.6], [0.95], {"a": "near_positive"}, {"d": "c"}, max_score=0.85)
    assert found.negatives == ["b", "c"] and found.excluded == {"near_positive": 1, "repeated": 1}


@settings(max_examples=300, deadline=None)
@given(
    scores=st.lists(few, max_size=10),
    positives=st.lists(few, max_size=3),
    first=st.integers(1, 4),
    k=st.integers(1, 3),
    stride=st.integers(1, 3),
    margin=st.none() | st.sampled_from([0.0, 0.25, 0.5]),
    relative=st.none() | st.sampled_from([0.0, 0.25, 1.0]),
    highest=st.none() | few,
    alike=st.sets(st.sampled_from("abcdefghij")),
)
def test_no_negative_breaks_a_rule_and_none_that_keeps_all_is_passed_over(
    scores, positives, first, k, stride, margin, relative, highest, alike
):
    scores = sorted(scores, reverse=True)[:6]
    fields = {"margin": margin, "relative_margin": relative, "max_score": highest, "window": (first, 6)}
    found = chosen(scores, positives, dict.fromkeys(alike, "x"), k=k, stride=stride, **fields)
    good = []
    for rank, score in enumerate(scores, 1):
        id, low = chr(96 + rank), min(positives) if positives else None
        fine = first <= rank <= 6 and id not in alike and (highest is None or score <= highest)
        fine = fine and (margin is None or low is None or score <= low - margin)
        good += (
            [id] if fine and (relative is None or low is None or score <= low - abs(low) * relative) else []
        )
    turns = [id for turn in range(stride) for at, id in enumerate(good) if at % stride == turn]
    assert set(found.negatives) == set(turns[:k]) and found.negatives == sorted(found.negatives)
    assert sum(found.excluded.values()) == len(scores[first - 1 : 6]) - len(good)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"window": (3, 2)}, r"window must be two ranks, 1 <= first <= last, got \[3, 2\]"),
        ({"window": (0, 2)}, "window must be two ranks"),
        ({"k": 7}, "k must be from 1 to the 6 ranks of window, got 7"),
        ({"stride": 0}, "stride must be >= 1"),
        ({"margin": -0.1}, "margin must be >= 0 or null"),
        ({"relative_margin": float("nan")}, "relative_margin must be >= 0 or null"),
        ({"max_score": float("inf")}, "max_score must be finite or null"),
        ({"near_duplicate": 0.0}, "near_duplicate must be > 0 and <= 1, or null"),
        ({"fusion": 1.5}, "fusion must be between 0 and 1"),
        ({"number": "label"}, "number must not be one of id, label"),
        ({"tag": "two words"}, "tag must be one word"),
        ({"corpus": " "}, "corpus must not be empty"),
        (
            {"data": SOURCES.decode({"name": "emoji", "style": "google"})},
            "data must be queries with candidates",
        ),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_told(fields, told):
    with pytest.raises(ValueError, match=told):
        recipe(**{"k": 1, **fields} if "window" in fields else fields)
