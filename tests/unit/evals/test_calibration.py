"""Calibration error and the area under the risk-coverage curve, against loops and torchmetrics."""

from itertools import permutations
from statistics import fmean

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_calibration_error

from vlalign.evals.metrics.calibration import calibration_error, risk_coverage


def naive_error(scores, right, bins):
    """Bins one after another."""
    p = [1 / (1 + 2.718281828459045**-score) for score in scores]
    total = 0.0
    for place in range(bins):
        own = [i for i, value in enumerate(p) if min(int(value * bins), bins - 1) == place]
        if own:
            total += len(own) / len(p) * abs(fmean(right[i] for i in own) - fmean(p[i] for i in own))
    return total


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans()), min_size=1, max_size=40), st.integers(1, 15))
def test_calibration_error_is_that_of_a_loop(pairs, bins):
    scores, right = zip(*pairs, strict=True)
    found = calibration_error(torch.tensor(scores, dtype=torch.float64), torch.tensor(right), bins)
    assert found == pytest.approx(naive_error(scores, right, bins), abs=1e-9)


def test_calibration_error_is_that_of_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(5000, generator=generator, dtype=torch.float64)
    right = torch.rand(5000, generator=generator, dtype=torch.float64) < (scores / 3).sigmoid()
    wanted = binary_calibration_error(scores.sigmoid(), right.long(), n_bins=15).item()
    assert calibration_error(scores, right) == pytest.approx(wanted, abs=1e-9) and wanted > 0.05
    honest = torch.rand(5000, generator=generator, dtype=torch.float64) < scores.sigmoid()
    assert calibration_error(scores, honest) < 0.03


def test_calibration_error_knows_the_ends():
    ends = torch.tensor([1e4, -1e4])
    assert calibration_error(ends, torch.tensor([True, False])) == 0
    assert calibration_error(ends, torch.tensor([False, True])) == 1


def naive_area(confidence, risk):
    """The mean over all orders that confidence allows of the mean of selective risks."""
    areas = []
    for order in permutations(range(len(risk))):
        if all(confidence[a] >= confidence[b] for a, b in zip(order, order[1:], strict=False)):
            areas.append(fmean(fmean(risk[i] for i in order[:k]) for k in range(1, len(order) + 1)))
    return fmean(areas)


ANSWERS = st.tuples(st.sampled_from([-torch.inf, 0.0, 0.5, 2.0, torch.inf]), st.floats(0, 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(ANSWERS, min_size=1, max_size=6))
def test_the_area_is_the_mean_over_all_orders_of_ties(answers):
    confidence, risk = zip(*answers, strict=True)
    found = risk_coverage(
        torch.tensor(confidence, dtype=torch.float64), torch.tensor(risk, dtype=torch.float64)
    )
    assert found == pytest.approx(naive_area(confidence, risk), abs=1e-9)


def test_knowing_when_one_errs_makes_the_area_small():
    risk = torch.tensor([0.0, 0, 1, 1])
    assert risk_coverage(torch.tensor([4.0, 3, 2, 1]), risk) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert risk_coverage(torch.tensor([1.0, 2, 3, 4]), risk) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert risk_coverage(torch.ones(4), risk) == pytest.approx(0.5)
