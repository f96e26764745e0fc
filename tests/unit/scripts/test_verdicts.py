from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from verdicts import Paired, holm, paired, verdict


def by_seed(values) -> dict[int, float]:
    return dict(enumerate(values))


def test_an_interval_is_that_of_a_paired_t_test():
    random = np.random.default_rng(0)
    base = random.normal(0.5, 0.1, 20)
    method = base + random.normal(0.01, 0.02, 20)
    found, reference = paired(by_seed(method), by_seed(base)), stats.ttest_rel(method, base)
    low, high = reference.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue))
    assert found.mean == pytest.approx((method - base).mean()) and found.seeds == 20


@pytest.mark.parametrize("table", [1, 40])
def test_the_detectable_difference_is_found_four_times_in_five(table):
    random, zeros = np.random.default_rng(1), by_seed(np.zeros(20))

    def drawn(mean: float) -> Paired:
        return paired(by_seed(random.normal(mean, 1, 20)), zeros, table)

    detectable = np.mean([drawn(0.0).detectable for _ in range(300)])
    found = [drawn(detectable).p * table < 0.05 for _ in range(3000)]  # the first step of Holm's
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_what_is_not_found_is_smaller_than_what_could_be():
    random = np.random.default_rng(3)
    for _ in range(200):
        arms = {arm: random.normal(random.uniform(0, 1), 1, 20) for arm in range(30)}
        found = {arm: paired(by_seed(x), by_seed(np.zeros(20)), len(arms)) for arm, x in arms.items()}
        corrected = holm({arm: each.p for arm, each in found.items()})
        assert all(abs(found[a].mean) < found[a].detectable for a, p in corrected.items() if p >= 0.05)


def test_arms_that_never_differ():
    same = paired({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    assert same.p == 1 and same.low == same.high == 0
    assert verdict(same, 1.0) == "no difference larger than 0.0"
    assert paired({0: 0.6, 1: 0.6}, {0: 0.5, 1: 0.5}).p == 0


def test_arms_of_different_seeds_are_refused():
    with pytest.raises(ValueError, match="the same seeds"):
        paired({0: 0.1, 1: 0.2}, {0: 0.1, 2: 0.2})
    with pytest.raises(ValueError, match="at least 2"):
        paired({0: 0.1}, {0: 0.1})


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0} and holm({}) == {}


def test_holm_keeps_the_error_of_a_table_of_nothing():
    random = np.random.default_rng(2)
    tables = [holm(dict(enumerate(random.uniform(size=30)))) for _ in range(2000)]
    assert np.mean([min(table.values()) < 0.05 for table in tables]) == pytest.approx(0.05, abs=0.02)


def test_a_verdict():
    found = Paired(seeds=20, mean=0.01, low=0.001, high=0.019, p=0.03, detectable=0.021)
    assert verdict(found, 0.04) == "helps"
    assert verdict(replace(found, mean=-0.01), 0.04) == "hurts"
    assert verdict(found, 0.06) == "no difference larger than 2.1"
