"""The many-facet Rasch model, against loops, numerical derivatives, a logistic regression and simulations."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag, null_space
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression

from vlalign.evals.metrics.paired import paired
from vlalign.evals.metrics.rasch import PRIOR, log_probabilities, moments, rasch
from vlalign.types import UserError

STEPS = np.array([-1.5, -0.5, 0.5, 1.5])
HARD = np.array([-0.5, 0.0, 0.5])  # of three items


def crossed(objects, items, raters):
    """Ids of the ratings where all rate everything."""
    return [axis.ravel() for axis in np.meshgrid(*map(np.arange, (objects, items, raters)), indexing="ij")]


def draw(generator, location, steps):
    """Ratings [R] from the model, one loop over categories."""
    odds = np.ones((len(location), 1))
    for k in range(steps.shape[1]):
        odds = np.hstack([odds, odds[:, -1:] * np.exp(location - steps[:, k])[:, None]])
    edges = odds.cumsum(1) / odds.sum(1, keepdims=True)
    return (generator.random((len(location), 1)) > edges[:, :-1]).sum(1)


def simulate(seed, *, uneven=0.0, random=0, objects=200, raters=20, each=5):
    """Truth and ratings of 3 items, `each` raters an object; the first `random` raters answer at random.

    The higher `uneven`, the more do severe raters get the better objects.
    """
    generator = np.random.default_rng(seed)
    ability, severity = generator.normal(size=objects), generator.normal(size=raters)
    severity -= severity.mean()
    wish = uneven * np.outer(ability, severity) + generator.gumbel(size=(objects, raters))
    chosen = wish.argsort(1)[:, -each:]
    n, i, place = crossed(objects, 3, each)
    j = chosen[n, place]
    x = draw(generator, ability[n] - HARD[i] - severity[j], np.tile(STEPS, (len(n), 1)))
    return ability, severity, (n, i, j, np.where(j < random, generator.integers(0, 5, len(x)), x))


def raw_means(n, x):
    return np.bincount(n, x) / np.bincount(n)


def agreement(first, second):
    return float(spearmanr(first, second).statistic)


def small(seed, objects=7, items=3, raters=4, categories=4):
    """A small design with holes; the first ratings use every category of every item."""
    generator = np.random.default_rng(seed)
    n, i, j = crossed(objects, items, raters)
    kept = generator.random(len(n)) < 0.8
    n, i, j = n[kept], i[kept], j[kept]
    x = generator.integers(0, categories, len(n))
    for item in range(items):
        x[np.flatnonzero(i == item)[:categories]] = np.arange(categories)
    return n, i, j, x


def naive(ability, difficulty, severity, steps):
    """Probabilities of one rating, from products of odds."""
    odds = [1.0]
    for step in steps:
        odds.append(odds[-1] * math.exp(ability - difficulty - severity - step))
    return [each / sum(odds) for each in odds]


def naive_likelihood(ratings, ability, difficulty, severity, steps):
    """The sum of log-probabilities, one rating after another; steps [I, K - 1]."""
    told = zip(*(column.tolist() for column in ratings), strict=True)
    return sum(math.log(naive(ability[n], difficulty[i], severity[j], steps[i])[x]) for n, i, j, x in told)


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_and_likelihood_against_a_loop(seed):
    generator = np.random.default_rng(seed)
    n, i, j, x = ratings = small(seed)
    ability, difficulty, severity = (3 * generator.normal(size=size) for size in (7, 3, 4))
    steps = 2 * generator.normal(size=(3, 3))
    found = log_probabilities(ability[n] - difficulty[i] - severity[j], steps[i])
    for row, a, b, c in zip(found, n, i, j, strict=True):
        assert np.exp(row) == pytest.approx(
            naive(ability[a], difficulty[b], severity[c], steps[b]), abs=1e-12
        )
    wanted = naive_likelihood(ratings, ability, difficulty, severity, steps)
    assert found[np.arange(len(x)), x].sum() == pytest.approx(wanted, abs=1e-9)


def test_probabilities_far_out_stay_finite():
    found = log_probabilities(np.array([-2000.0, 2000.0]), np.zeros((2, 3)))
    assert np.isfinite(found).all() and found[0, 0] == 0 and found[1, 3] == 0 and found[1, 0] == -6000


def test_two_categories_are_the_logistic_model():
    location = np.linspace(-4, 4, 9)
    assert np.exp(log_probabilities(location, np.zeros((9, 1)))[:, 1]) == pytest.approx(
        1 / (1 + np.exp(-location)), abs=1e-14
    )


def test_two_categories_without_raters_are_a_logistic_regression():
    generator = np.random.default_rng(0)
    n, i, j = crossed(30, 6, 1)
    x = (generator.normal(size=30)[n] + generator.logistic(size=len(n)) > np.linspace(-1, 1, 6)[i]).astype(
        int
    )
    found = rasch(n, i, j, x, categories=2)
    free = null_space(np.ones((1, 6)))  # difficulties of mean 0
    design = np.hstack([np.eye(30)[n], -(np.eye(6)[i] @ free)])
    model = LogisticRegression(C=PRIOR**2, fit_intercept=False, tol=1e-10, max_iter=10000).fit(design, x)
    assert found.ability == pytest.approx(model.coef_[0, :30], abs=1e-4)
    assert found.difficulty == pytest.approx(free @ model.coef_[0, 30:], abs=1e-4)
    assert found.severity == [0] and found.severity_error == pytest.approx([0], abs=1e-6)
    assert (found.steps == 0).all() and found.steps.shape == (6, 1)


def test_a_shift_of_abilities_and_difficulties_changes_no_probability():
    n, i, j, _ = ratings = small(1)
    generator = np.random.default_rng(1)
    ability, difficulty, severity = (generator.normal(size=size) for size in (7, 3, 4))
    steps = generator.normal(size=(3, 3))
    for a, b, c in (7.5, 7.5, 0), (7.5, 0, 7.5):
        moved = ability + a, difficulty + b, severity + c
        before, after = (
            log_probabilities(t[n] - d[i] - s[j], steps[i])
            for t, d, s in ((ability, difficulty, severity), moved)
        )
        assert after == pytest.approx(before, abs=1e-12)
        wanted = naive_likelihood(ratings, ability, difficulty, severity, steps)
        assert naive_likelihood(ratings, *moved, steps) == pytest.approx(wanted, abs=1e-9)


def test_the_expected_score_rises_with_the_variance_as_its_slope():
    location, steps = np.linspace(-5, 5, 101), np.tile([0.7, -1.2, 0.1, 0.4], (101, 1))
    mean, variance = moments(log_probabilities(location, steps))
    above, below = (moments(log_probabilities(location + h, steps))[0] for h in (1e-5, -1e-5))
    assert (above - below) / 2e-5 == pytest.approx(variance, abs=1e-8)
    assert (np.diff(mean) > 0).all() and (variance > 0).all()


def test_adjacent_log_odds_are_linear_in_every_facet():
    location, steps = np.linspace(-3, 3, 13), np.array([0.7, -1.2, 0.5])
    odds = np.diff(log_probabilities(location, np.tile(steps, (13, 1))), axis=1)
    assert odds == pytest.approx(location[:, None] - steps, abs=1e-12)


@pytest.mark.parametrize("partial_credit", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_the_mode_and_errors_are_of_its_curvature(seed, partial_credit):
    """Numerical derivatives of the naive likelihood, in coordinates whose means are 0."""
    n, i, j, x = ratings = small(seed, objects=5, raters=3)
    found = rasch(*ratings, categories=4, partial_credit=partial_credit)
    sets = 3 if partial_credit else 1
    free = block_diag(np.eye(5), *(null_space(np.ones((1, size))) for size in (3, 3, *[3] * sets)))
    start = np.concatenate([found.ability, found.difficulty, found.severity, found.steps[:sets].ravel()])

    def height(move):
        ability, difficulty, severity, steps = np.split(start + free @ move, [5, 8, 11])
        steps = np.tile(steps.reshape(sets, 3), (3 // sets, 1))
        penalty = ((start + free @ move) ** 2).sum() / (2 * PRIOR**2)
        return naive_likelihood(ratings, ability, difficulty, severity, steps) - penalty

    units, h = np.eye(free.shape[1]), 1e-3
    slope = [(height(h * u) - height(-h * u)) / (2 * h) for u in units]
    assert slope == pytest.approx([0] * len(units), abs=1e-4)
    curve = [
        [
            sum(a * b * height(h * (a * u + b * v)) for a in (1, -1) for b in (1, -1)) / (4 * h * h)
            for v in units
        ]
        for u in units
    ]
    error = np.sqrt((free @ np.linalg.inv(-np.array(curve)) @ free.T).diagonal())
    assert found.ability_error == pytest.approx(error[:5], rel=1e-3)
    assert found.severity_error == pytest.approx(error[8:11], rel=1e-3)
    means = found.severity.mean(), found.difficulty.mean(), *found.steps.mean(1)
    assert means == pytest.approx([0] * 5, abs=1e-12)
    assert partial_credit or (found.steps == found.steps[0]).all()


def test_fit_statistics_against_a_loop():
    n, i, j, x = ratings = small(4)
    found = rasch(*ratings, categories=4, partial_credit=True)
    parts = {("rater", c): [] for c in range(4)} | {("item", b): [] for b in range(3)}
    for a, b, c, value in zip(n, i, j, x, strict=True):
        p = naive(found.ability[a], found.difficulty[b], found.severity[c], found.steps[b])
        mean = sum(k * each for k, each in enumerate(p))
        variance = sum((k - mean) ** 2 * each for k, each in enumerate(p))
        for part in ("rater", c), ("item", b):
            parts[part].append(((value - mean) ** 2, variance))
    for (name, place), told in parts.items():
        infit = sum(square for square, _ in told) / sum(variance for _, variance in told)
        outfit = sum(square / variance for square, variance in told) / len(told)
        assert getattr(found, f"{name}_infit")[place] == pytest.approx(infit, abs=1e-10)
        assert getattr(found, f"{name}_outfit")[place] == pytest.approx(outfit, abs=1e-10)


@pytest.mark.parametrize("uneven", [0, 1])
def test_simulated_truth_is_recovered(uneven):
    for seed in range(3):
        ability, severity, ratings = simulate(seed, uneven=uneven)
        found = rasch(*ratings, categories=5)
        assert np.corrcoef(found.severity, severity)[0, 1] > 0.97
        assert np.corrcoef(found.ability, ability)[0, 1] > 0.9
        assert found.difficulty == pytest.approx(HARD, abs=0.2)
        assert found.steps == pytest.approx(np.tile(STEPS, (3, 1)), abs=0.35)
        away = (found.severity - severity) / found.severity_error
        assert 0.5 < np.sqrt((away**2).mean()) < 2
        assert not found.misfits and found.rater_infit.mean() == pytest.approx(1, abs=0.1)


def test_partial_credit_finds_the_steps_of_each_item():
    generator = np.random.default_rng(5)
    n, i, j = crossed(300, 2, 6)
    steps = np.array([[-2.0, 0.0, 2.0], [0.5, 0.0, -0.5]])
    x = draw(generator, generator.normal(size=300)[n] - np.linspace(-1, 1, 6)[j], steps[i])
    found = rasch(n, i, j, x, categories=4, partial_credit=True)
    assert found.steps == pytest.approx(steps, abs=0.35)
    shared = rasch(n, i, j, x, categories=4)
    assert (shared.steps[0] == shared.steps[1]).all() and abs(shared.steps[0] - steps).max() > 0.8


def test_where_severe_raters_get_the_better_objects_it_beats_raw_means():
    """5 of 20 raters an object, 200 objects, 3 items; the same objects for both."""
    fitted, raw = [], []
    for seed in range(6):
        ability, _, (n, i, j, x) = simulate(seed, uneven=1)
        fitted.append(agreement(rasch(n, i, j, x, categories=5).ability, ability))
        raw.append(agreement(raw_means(n, x), ability))
    assert paired(fitted, raw)["low"] > 0.2 and min(fitted) > 0.9


def test_leaving_out_misfits_helps_further():
    every, good = [], []
    for seed in range(5):
        ability, _, (n, i, j, x) = simulate(seed, uneven=0.5, random=4)
        found = rasch(n, i, j, x, categories=5)
        assert set(found.misfits) <= {0, 1, 2, 3} and len(found.misfits) >= 3
        kept = ~np.isin(j, found.misfits)
        rest, new = np.unique(n[kept], return_inverse=True)
        renamed = np.unique(j[kept], return_inverse=True)[1]
        again = rasch(new, i[kept], renamed, x[kept], categories=5)
        every.append(agreement(found.ability[rest], ability[rest]))
        good.append(agreement(again.ability, ability[rest]))
    assert paired(good, every)["low"] > 0


def test_where_all_rate_everything_the_order_is_that_of_raw_means():
    generator = np.random.default_rng(6)
    n, i, j = crossed(60, 2, 4)
    x = draw(generator, generator.normal(size=60)[n] - np.linspace(-1, 1, 4)[j], np.tile(STEPS, (len(n), 1)))
    found = rasch(n, i, j, x, categories=5)
    assert agreement(found.ability, raw_means(n, x)) == pytest.approx(1, abs=1e-12)


def test_a_random_rater_has_a_high_infit_and_a_regular_one_a_low():
    ability, severity, (n, i, j, x) = simulate(7, random=1)
    location = ability[n] - HARD[i] - severity[j]
    expected = moments(log_probabilities(location, np.tile(STEPS, (len(n), 1))))[0]
    x = np.where(j == 1, expected.round().astype(int), x)
    found = rasch(n, i, j, x, categories=5)
    assert found.rater_infit[0] > 1.5 > 1.3 > found.rater_infit[2:].max()
    assert found.rater_infit[1] < 0.5 < found.rater_infit[2:].min() and found.misfits == [0, 1]
    assert found.rater_outfit[0] > 1.5 and found.rater_outfit[1] < 0.5


def test_misfits_are_outside_the_band():
    found = rasch(*small(0), categories=4)
    assert replace(found, rater_infit=np.array([0.49, 0.5, 1.0, 1.5, 1.51])).misfits == [0, 4]


def test_extreme_objects_and_raters_are_finite():
    _, _, (n, i, j, x) = simulate(8)
    x = np.where(n == 0, 4, np.where(n == 1, 0, np.where(j == 3, 4, x)))
    found = rasch(n, i, j, x, categories=5)
    assert all(np.isfinite(getattr(found, field.name)).all() for field in fields(found))
    assert found.ability[0] == found.ability.max() < 15 and found.ability[1] == found.ability.min() > -15
    assert found.severity.argmin() == 3 and found.severity[3] > -15
    assert found.ability_error[:2].min() > 2 * np.median(found.ability_error)


def test_a_perfect_scale_is_fitted():
    """Nobody ever errs, so that without the prior all distances were infinite."""
    n, i, j = crossed(40, 3, 6)
    x = np.clip(np.floor(np.linspace(-3, 3, 40)[n] + 0.3 * i - 0.2 * j + 2.5), 0, 4).astype(int)
    found = rasch(n, i, j, x, categories=5)
    assert np.isfinite(found.ability).all() and (np.diff(found.ability) >= -1e-9).all()
    assert (np.diff(found.severity) > 0).all() and found.misfits == list(range(6))


def test_rows_in_any_order_and_tensors_give_the_same():
    ratings = small(2)
    order = np.random.default_rng(2).permutation(len(ratings[0]))
    first = rasch(*ratings, categories=4)
    second = rasch(*(torch.tensor(column[order]) for column in ratings), categories=4)
    for field in fields(first):
        assert getattr(first, field.name) == pytest.approx(getattr(second, field.name), abs=1e-9)


def test_parts_that_share_no_rater_are_named():
    n, i, j = crossed(12, 2, 4)
    apart = (n < 9) == (j < 2)  # all items join them, and still nothing compares the objects
    x = (n + i + j)[apart] % 3
    with pytest.raises(UserError) as error:
        rasch(n[apart], i[apart], j[apart], x, categories=3)
    assert "objects 0, 1, 2, 3, 4 and 4 more with raters 0, 1; objects 9, 10, 11 with raters 2, 3." in str(
        error.value
    )
    joined = apart | ((n == 0) & (j == 2))
    rasch(n[joined], i[joined], j[joined], (n + i + j)[joined] % 3, categories=3)


@pytest.mark.parametrize(
    ("apart", "told"),
    [
        (lambda n, i, j: (n < 3) == (i < 1), "objects 0, 1, 2 with items 0; objects 3, 4, 5 with items 1"),
        (lambda n, i, j: (i < 1) == (j < 2), "items 0 with raters 0, 1; items 1 with raters 2, 3"),
    ],
)
def test_items_that_are_joined_by_nothing_are_named(apart, told):
    n, i, j = crossed(6, 2, 4)
    kept = apart(n, i, j)
    with pytest.raises(UserError, match=f"2 parts.*{told}"):
        rasch(n[kept], i[kept], j[kept], (n + i + j)[kept] % 3, categories=3)


def test_of_many_parts_the_first_are_named():
    n = np.arange(9)
    with pytest.raises(UserError, match="9 parts.*objects 4 with raters 4; and others. Add"):
        rasch(n, 0 * n, n, n % 2, categories=2)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"categories": 3}, "values are 0 to 2, found 3"),
        ({"categories": 5}, "no rating is 4, .* merge categories$"),
        ({"values": lambda x: x - 1}, "from 0 on, found -1"),
        ({"values": lambda x: x + 0.5}, r"found float64 \[\d+\]"),
        ({"values": lambda x: x[None]}, r"found int64 \[1, \d+\]"),
        ({"values": lambda x: 0 * x + 2}, "all ratings are 2: a single category says nothing"),
        ({"values": lambda x: x[1:]}, r"found \[(\d+), \1, \1, \d+\] of them"),
        ({"objects": lambda n: n + 2 * (n > 3)}, "no rating has object 4, 5: number"),
        ({"raters": lambda j: j + 1}, "no rating has rater 0: number"),
    ],
)
def test_what_cannot_be_fitted_is_told(change, told):
    given = dict(zip(("objects", "items", "raters", "values"), small(3), strict=True)) | {"categories": 4}
    rasch(**given)
    given |= {name: how(given[name]) if callable(how) else how for name, how in change.items()}
    with pytest.raises(UserError, match=told):
        rasch(**given)


def test_a_category_that_one_item_lacks_matters_to_its_own_steps_alone():
    n, i, j, x = small(3)
    x = np.where((i == 1) & (x == 2), 1, x)
    rasch(n, i, j, x, categories=4)
    with pytest.raises(UserError, match="no rating of item 1 is 2, .*, or let items share their steps"):
        rasch(n, i, j, x, categories=4, partial_credit=True)


def test_no_ratings_are_told():
    none = np.zeros(0, int)
    with pytest.raises(UserError, match=r"found \[0, 0, 0, 0\]"):
        rasch(none, none, none, none, categories=2)
