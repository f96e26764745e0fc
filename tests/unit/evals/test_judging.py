"""How far judges agree, with each other and with what is right, against loops over pairs."""

from itertools import combinations

import numpy as np
import pytest

from vlalign.evals.metrics.judging import agreement, quality


def ranked(values):
    """Mean ranks of ties."""
    return [
        sum(other < own for other in values) + (sum(other == own for other in values) - 1) / 2
        for own in values
    ]


def correlation(a, b):
    a, b = (np.array(each, float) - np.mean(each) for each in (a, b))
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def tau(a, b):
    """tau-b: pairs that both order alike less those they order otherwise, ties of either left out below."""
    up = down = 0
    for one, other in combinations(range(len(a)), 2):
        way = (a[one] - a[other]) * (b[one] - b[other])
        up, down = up + (way > 0), down + (way < 0)
    untied = [sum(x[i] != x[j] for i, j in combinations(range(len(x)), 2)) for x in (a, b)]
    return (up - down) / np.sqrt(untied[0] * untied[1])


def test_correlations_are_those_of_a_loop_over_all_pairs_with_ties():
    random = np.random.default_rng(0)
    lists = {
        name: [random.integers(0, 6, size).tolist() for size in (3, 5, 1, 7)] for name in ("a", "b", "c")
    }
    found = agreement(lists)
    assert [each["judges"] for each in found] == [["a", "b"], ["a", "c"], ["b", "c"]]
    for each in found:
        one, other = (sum(lists[name], []) for name in each["judges"])
        assert each["spearman"] == pytest.approx(correlation(ranked(one), ranked(other)))
        assert each["kendall"] == pytest.approx(tau(one, other))


def test_judges_that_say_one_thing_of_all_agree_with_none():
    (found,) = agreement({"a": [[1.0, 2.0]], "b": [[3.0, 3.0]]})
    assert found["spearman"] is None and found["kendall"] is None


def test_kappa_is_what_is_agreed_beyond_chance():
    odds, right = [[1.0, -1.0, 2.0], [-3.0, 0.5, -0.1]], [[True, False, False], [False, True, True]]
    said, truth = [each > 0 for own in odds for each in own], sum(right, [])
    agreed = np.mean(np.equal(said, truth))
    chance = np.mean(said) * np.mean(truth) + (1 - np.mean(said)) * (1 - np.mean(truth))
    assert quality(odds, right, log_odds=True)["kappa"] == pytest.approx((agreed - chance) / (1 - chance))
    assert "kappa" not in quality(odds, right)
