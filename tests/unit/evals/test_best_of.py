"""Answers by falling scores: risk at each coverage, and the best of n."""

from itertools import combinations, permutations
from math import comb

import pytest
import torch

from vlalign.evals.metrics.best_of import best_of
from vlalign.evals.metrics.calibration import risk_coverage, risks

SCORES = torch.tensor([0.3, 0.9, 0.1, 0.7, 0.5]).double()
WORTH = torch.tensor([0.2, 0.6, 0.9, 0.1, 0.4]).double()


def looped(scores, worth):
    """Every draw of every n."""
    found = []
    for n in range(1, len(scores) + 1):
        draws = [max(own, key=lambda at: scores[at]) for own in combinations(range(len(scores)), n)]
        found.append(sum(float(worth[at]) for at in draws) / len(draws))
    return found


def test_the_best_of_n_is_that_of_every_draw():
    assert best_of(SCORES, WORTH).tolist() == pytest.approx(looped(SCORES, WORTH))
    assert best_of(SCORES, WORTH)[0] == pytest.approx(WORTH.mean().item())
    assert best_of(SCORES, WORTH)[-1] == WORTH[SCORES.argmax()]


def test_many_answers_are_quick_and_one_is_itself():
    generator = torch.Generator().manual_seed(0)
    scores, worth = torch.rand(2, 1000, generator=generator, dtype=torch.float64)
    found, falling = best_of(scores, worth), worth[scores.argsort(descending=True)]
    for n in (2, 30, 999):
        chances = [comb(999 - place, n - 1) / comb(1000, n) for place in range(1000)]
        assert found[n - 1] == pytest.approx((torch.tensor(chances).double() @ falling).item())
    assert best_of(scores[:1], worth[:1]).tolist() == worth[:1].tolist()


def test_scores_that_tie_come_in_any_order():
    tied = torch.tensor([1.0, 0.0, 1.0, 0.0]).double()
    orders = [looped(tied + torch.tensor(own) * 1e-6, WORTH[:4]) for own in permutations(range(4))]
    assert best_of(tied, WORTH[:4]).tolist() == pytest.approx(torch.tensor(orders).mean(0).tolist())


@pytest.mark.parametrize("seed", range(5))
def test_an_oracle_gains_with_every_further_draw_and_its_opposite_loses(seed):
    worth = torch.rand(9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert (best_of(worth, worth).diff() > 0).all() and (best_of(-worth, worth).diff() < 0).all()
    torch.testing.assert_close(best_of(torch.zeros(9), worth), worth.mean().expand(9))


@pytest.mark.parametrize("seed", range(5))
def test_at_full_coverage_risk_is_the_mean_and_an_oracle_errs_more_the_more_it_answers(seed):
    generator = torch.Generator().manual_seed(seed)
    risk = torch.rand(12, generator=generator, dtype=torch.float64)
    sure = torch.rand(12, generator=generator, dtype=torch.float64)
    assert risks(sure, risk)[-1] == pytest.approx(risk.mean().item())
    assert (risks(-risk, risk).diff() > 0).all()
    order = sorted(range(12), key=lambda at: -sure[at])
    looped = [sum(float(risk[at]) for at in order[:k]) / k for k in range(1, 13)]
    assert risks(sure, risk).tolist() == pytest.approx(looped)
    assert risk_coverage(sure, risk) == pytest.approx(sum(looped) / 12)
