"""UniME-V2's choice of hard negatives by a judge, Gu et al. 2025, https://arxiv.org/abs/2510.13515."""

import numpy as np
import pytest

from vlalign.infer.choosing import chosen
from vlalign.recipe.judging import Choice

RIGHT = [True, *[False] * 12]


def made(seed=0):
    return np.random.default_rng(seed).uniform(size=13).tolist()


def looped(scores, right, choice):
    """As the paper words it, one candidate after the other."""
    bound = min(score for score, own in zip(scores, right, strict=True) if own)
    left = [at for at in range(len(right)) if not right[at]]
    if choice.treat != "soft":
        left = [at for at in left if not scores[at] > bound - choice.margin]
    taken, turn = [], 0
    while left and len(taken) < choice.k and turn < choice.stride:
        taken += left[turn :: choice.stride]
        turn += 1
    more = [at for at in range(len(right)) if not right[at] and at not in left]
    return sorted([0, *taken[: choice.k], *(more if choice.treat == "relabel" else [])])


@pytest.mark.parametrize("treat", ["drop", "soft", "relabel"])
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_equals_a_loop(treat, stride):
    choice = Choice(margin=0.1, treat=treat, k=4, stride=stride)
    for seed in range(20):
        assert chosen(made(seed), RIGHT, choice).places == looped(made(seed), RIGHT, choice)


def test_below_least_nothing_is_suspected_however_low_the_positive():
    scores, right = [0.1, 0.2, 0.6, 0.5, 0.9], [True, *[False] * 4]
    assert chosen(scores, right, Choice(margin=0.0, k=9, stride=1)).false == [1, 2, 3, 4]
    assert chosen(scores, right, Choice(margin=0.0, least=0.5, k=9, stride=1)).false == [2, 4]
    assert chosen([0.95, *scores[1:]], right, Choice(margin=0.0, least=0.5, k=9, stride=1)).false == []


def test_no_negative_that_stays_scores_above_the_lowest_positive_less_the_margin():
    for seed in range(20):
        scores, right = made(seed), [True, True, *[False] * 11]
        found = chosen(scores, right, Choice(margin=0.2, k=11, stride=1))
        bound = min(scores[:2]) - 0.2
        assert all(right[at] or scores[at] <= bound for at in found.places)
        assert found.false == [at for at in range(2, 13) if scores[at] > bound]


def test_stride_one_is_the_first_k_that_are_left():
    scores = [0.9, 0.95, *(0.1 * at for at in range(8, -3, -1))]
    found = chosen(scores, RIGHT, Choice(margin=0.01, k=3, stride=1))
    assert found.places == [0, 2, 3, 4] and found.false == [1]


def test_too_few_survivors_are_all_there_are():
    assert chosen([0.5, 0.9, 0.1], [True, False, False], Choice(k=8)).places == [0, 2]
    assert chosen([0.1, 0.9, 0.8], [True, False, False], Choice(k=8)).places == [0]


def test_without_a_positive_nothing_is_suspected():
    assert chosen([0.9, 0.1], [False, False], Choice(k=8, stride=1)) == ([0, 1], [])


@pytest.mark.parametrize(("field", "value"), [("k", 0), ("stride", 0), ("margin", float("nan"))])
def test_ranges(field, value):
    with pytest.raises(ValueError, match=field):
        Choice(**{field: value})
