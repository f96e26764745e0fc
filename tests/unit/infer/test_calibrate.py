"""Cross-fitted logistic regression: Platt's scaling, a probe or a fusion, told by concepts not its own."""

import numpy as np
import pytest
from scipy.optimize import minimize

from vlalign.evals.metrics.judging import first_places, quality, reciprocals
from vlalign.infer import calibrate
from vlalign.infer.calibrate import calibrated, concepts
from vlalign.types import UserError

WIDE = 40


def pairs(queries=60, candidates=5, width=1, seed=0):
    """Numbers [P, width] that know something, what is right [P], and the query of each [P]."""
    random = np.random.default_rng(seed)
    right = np.zeros((queries, candidates), bool)
    right[:, 0] = True
    right = right.reshape(-1)
    measured = random.normal(size=(len(right), width)) + right[:, None] * (np.arange(width) % 2 == 0)
    return measured, right, np.repeat(np.arange(queries), candidates)


def test_one_number_is_scaled_as_platt_does_by_the_other_fold(monkeypatch):
    monkeypatch.setattr(calibrate, "STRENGTHS", [1e6])  # no penalty
    measured, right, concept = pairs()
    found = calibrated(measured, right, concept, 2)
    fold = calibrate.parted(concept, 2)
    for own in (0, 1):
        x, y = measured[fold != own, 0], right[fold != own]

        def loss(ab, x=x, y=y):
            odds = ab[0] * x + ab[1]
            return np.logaddexp(0, np.where(y, -odds, odds)).sum()

        slope, offset = minimize(loss, [0.0, 0.0], tol=1e-10).x
        np.testing.assert_allclose(found[fold == own], slope * measured[fold == own, 0] + offset, atol=2e-3)


def test_no_pair_is_told_by_its_own_concept():
    measured, right, concept = pairs(width=WIDE)
    found = calibrated(measured, right, concept, 2)
    fold = calibrate.parted(concept, 2)
    turned = right.copy()
    turned[fold == 0] = ~turned[fold == 0]
    np.testing.assert_array_equal(calibrated(measured, turned, concept, 2)[fold == 0], found[fold == 0])
    assert not np.allclose(calibrated(measured, turned, concept, 2)[fold == 1], found[fold == 1])


def test_numbers_that_know_nothing_are_told_as_nothing():
    measured, right, concept = pairs(queries=200, width=WIDE)
    noise = np.random.default_rng(1).normal(size=measured.shape)
    odds = calibrated(noise, right, concept, 2)
    told = quality(odds.reshape(200, 5).tolist(), right.reshape(200, 5).tolist(), log_odds=True)
    assert abs(told["auc"] - 0.5) < 0.08 and told["calibration_error"] < 0.05  # forty of them fool nobody


def test_fused_numbers_know_more_than_each_and_are_calibrated():
    measured, right, concept = pairs(queries=200, width=4)
    fused = calibrated(measured, right, concept, 2).reshape(200, 5).tolist()
    truth = right.reshape(200, 5).tolist()
    whole = quality(fused, truth, log_odds=True)
    alone = [quality(measured[:, at].reshape(200, 5).tolist(), truth)["auc"] for at in range(4)]
    assert whole["auc"] > max(alone) + 0.03 and whole["calibration_error"] < 0.05
    assert abs(alone[1] - 0.5) < 0.08  # one that knows nothing


def test_scale_and_shift_of_a_number_change_nothing():
    measured, right, concept = pairs(width=3)
    plain = calibrated(measured, right, concept, 2)
    other = calibrated(measured * [1, 1000, -1e-3] + [0, 5, 1], right, concept, 2)
    np.testing.assert_allclose(other, plain, atol=1e-4)


def test_queries_that_share_a_right_candidate_are_one_concept_directly_or_by_others():
    found = concepts([["a"], ["b"], ["a", "c"], [], ["c"], []])
    assert found[0] == found[2] == found[4]
    assert len({found[0], found[1], found[3], found[5]}) == 4


def test_concepts_are_dealt_evenly_and_always_alike():
    concept = np.repeat(np.arange(31), 3)
    fold = calibrate.parted(concept, 2)
    assert sorted(np.bincount(fold) // 3) == [15, 16]
    assert (fold.reshape(-1, 3) == fold.reshape(-1, 3)[:, :1]).all()
    np.testing.assert_array_equal(fold, calibrate.parted(concept, 2))


@pytest.mark.parametrize("right", [0, 1])
def test_too_little_to_tell_by_is_refused(right):
    measured, truth, concept = pairs(queries=8)
    with pytest.raises(UserError, match="pairs of 4 concepts are right, and a regression needs"):
        calibrated(measured, np.full_like(truth, bool(right)), concept, 2)


def test_quality_is_of_ranks_with_ties_and_of_all_pairs():
    scores, right = [[3, 1, 2], [5, 5], [9, 8]], [[True, False, False], [True, False], [False, False]]
    found = quality(scores, right)
    assert found["R@1"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["mrr"] == pytest.approx((1 + (1 + 1 / 2) / 2) / 2)
    above = sum((p > n) + (p == n) / 2 for p in (3, 5) for n in (1, 2, 5, 9, 8))
    assert found["auc"] == pytest.approx(above / 10)
    assert reciprocals(first_places(scores[:2], right[:2])) == pytest.approx([1, (1 + 1 / 2) / 2])
