import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor

from vlalign.data import calibration as module
from vlalign.data.calibration import VirtualFeatures, calibrated
from vlalign.recipe.augmentation import Calibrate
from vlalign.types import DataError


def fit(features, labels, **how):
    """The Gaussian of each class, unless told all of whose defaults are a recipe's."""
    return calibrated(features, labels, Calibrate(**{"field": "concept", "head": 25} | how))


def covariance(gaussian):
    """What `draw` never forms."""
    whole = sum(weight * factor.T @ factor for weight, factor in gaussian.parts)
    return whole + gaussian.noise * np.eye(len(gaussian.mean))


def world(sizes, dim=6, seed=0):
    """Classes of these sizes about means of their own, each with its own spread."""
    random = np.random.default_rng(seed)
    points = [
        random.normal(size=dim) * 2 + random.normal(size=(size, dim)) @ random.normal(size=(dim, dim)) / dim
        for size in sizes
    ]
    return np.concatenate(points), np.repeat(np.arange(len(sizes)), sizes)


def naive(features, labels, name, head, near, blend, shrink):
    """The blended mean and covariance of a rare class, one class at a time."""
    own = {each: features[labels == each] for each in np.unique(labels)}
    means = {each: rows.mean(0) for each, rows in own.items()}
    spreads = {
        each: np.cov(rows.T) if len(rows) > 1 else np.zeros((features.shape[1],) * 2)
        for each, rows in own.items()
    }
    far = {each: math.dist(means[each], means[name]) for each, rows in own.items() if len(rows) >= head}
    chosen = sorted(far, key=far.get)[:near]
    total = sum(len(own[each]) / far[each] for each in chosen)
    mean, spread = (1 - blend) * means[name], (1 - blend) * spreads[name]
    for each in chosen:
        share = len(own[each]) / far[each] / total
        mean, spread = mean + blend * share * means[each], spread + blend * share * spreads[each]
    return mean, spread + shrink * np.trace(spread) / len(mean) * np.eye(len(mean))


SIZES = [40, 25, 30, 60, 4, 1, 2]


@pytest.mark.parametrize("blend", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shrink", [0.0, 0.1])
@pytest.mark.parametrize("near", [1, 3, 9])
def test_rare_classes_equal_a_loop_and_common_ones_are_untouched(blend, shrink, near):
    features, labels = world(SIZES)
    fitted = fit(features, labels, near=near, blend=blend, shrink=shrink, neighbours=0)
    assert list(fitted) == list(range(7))
    for name in (4, 5, 6):
        mean, spread = naive(features, labels, name, 25, near, blend, shrink)
        np.testing.assert_allclose(fitted[name].mean, mean, atol=1e-12)
        np.testing.assert_allclose(covariance(fitted[name]), spread, atol=1e-12)
    for name in (0, 1, 2, 3):
        own = features[labels == name]
        np.testing.assert_allclose(fitted[name].mean, own.mean(0), atol=1e-12)
        np.testing.assert_allclose(covariance(fitted[name]), np.cov(own.T), atol=1e-12)


@pytest.mark.parametrize("size", [4, 40])
def test_mixed_centred_points_have_the_covariance_of_the_class_and_more_than_d_become_a_triangle(size):
    features, labels = world([size])
    fitted = fit(features, labels, head=1, neighbours=0)[0]
    ((_, factor),) = fitted.parts
    assert factor.shape == (min(size, 6), 6)
    np.testing.assert_allclose(factor.T @ factor, np.cov(features.T), atol=1e-12)
    np.testing.assert_allclose(fitted.variance(), np.trace(np.cov(features.T)) / 6)


@pytest.mark.parametrize("name", [0, 4, 5])
def test_moments_of_draws_are_those_of_the_class(name):
    features, labels = world(SIZES)
    fitted = fit(features, labels, neighbours=0)[name]
    count, expected = 40_000, covariance(fitted)
    draws = fitted.draw(count, np.random.default_rng(1))
    deviation = np.sqrt(np.diag(expected))
    assert (np.abs(draws.mean(0) - fitted.mean) <= 5 * deviation / count**0.5).all()
    # The variance of an entry of a sample covariance is (s_ij^2 + s_ii s_jj) / n.
    bound = 5 * np.sqrt((expected**2 + np.outer(deviation, deviation) ** 2) / count)
    assert (np.abs(np.cov(draws.T) - expected) <= bound).all()


def test_covariances_are_positive_semidefinite_even_of_one_point():
    features, labels = world(SIZES)
    for fitted in (fit(features, labels, shrink=a) for a in (0.0, 0.1)):
        for gaussian in fitted.values():
            whole = covariance(gaussian)
            np.testing.assert_allclose(whole, whole.T, atol=1e-14)
            assert np.linalg.eigvalsh((whole + whole.T) / 2).min() > -1e-12
    alone = fit(features, labels, blend=0.0, shrink=0.0)[5]
    assert not covariance(alone).any()
    assert np.array_equal(alone.draw(3, np.random.default_rng(0)), np.repeat(features[labels == 5], 3, 0))


def test_outliers_move_the_mean_less():
    for seed in range(10):
        random = np.random.default_rng(seed)
        clean, strange = random.normal(size=(80, 8)), random.normal(size=(20, 8)) * 4 + 6
        points, labels = np.concatenate([clean, strange]), np.zeros(100, dtype=int)
        kept, everyone = (
            fit(points, labels, head=1, neighbours=neighbours)[0].mean for neighbours in (20, 0)
        )
        truth = clean.mean(0)
        assert np.linalg.norm(kept - truth) < 0.7 * np.linalg.norm(everyone - truth)


def test_no_more_than_some_rows_of_a_class_tell_outliers_and_all_are_judged(monkeypatch):
    random = np.random.default_rng(0)
    clean, strange = random.normal(size=(3000, 4)), random.normal(size=(30, 4)) * 4 + 15
    points, seen = np.concatenate([clean, strange]), []
    fit_all = LocalOutlierFactor.fit
    monkeypatch.setattr(
        LocalOutlierFactor, "fit", lambda self, rows: seen.append(len(rows)) or fit_all(self, rows)
    )
    kept = module._inliers(points, 20)
    assert seen == [module.SEEN] and np.array_equal(kept, module._inliers(points, 20))
    assert 2900 < len(kept) <= 3000 and kept.max() < 8
    few = points[-200:]
    whole = few[LocalOutlierFactor(n_neighbors=20).fit_predict(few) > 0]
    assert np.array_equal(module._inliers(few, 20), whole) and len(module._inliers(points, 5000)) > 2900


def test_with_a_blend_of_one_a_class_says_only_which_classes_are_near():
    features, labels = world(SIZES)
    moved = features.copy()
    moved[labels == 4] += 0.01 * np.random.default_rng(3).normal(size=(4, 6))
    one, other = (fit(rows, labels, near=1, blend=1.0)[4] for rows in (features, moved))
    assert np.array_equal(one.mean, other.mean) and np.array_equal(covariance(one), covariance(other))
    several = fit(features, labels, near=3, blend=1.0)[4]
    assert len(several.parts) == 3 and sum(weight for weight, _ in several.parts) == pytest.approx(1)


def test_turning_the_features_turns_the_gaussians():
    features, labels = world(SIZES)
    turn, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(6, 6)))
    plain, turned = (fit(rows, labels) for rows in (features, features @ turn))
    for name in plain:
        np.testing.assert_allclose(turned[name].mean, plain[name].mean @ turn, atol=1e-10)
        np.testing.assert_allclose(
            covariance(turned[name]), turn.T @ covariance(plain[name]) @ turn, atol=1e-10
        )


def test_the_order_of_rows_does_not_matter():
    features, labels = world(SIZES)
    mixed = np.random.default_rng(2).permutation(len(labels))
    plain, other = (fit(*rows) for rows in ((features, labels), (features[mixed], labels[mixed])))
    for name in plain:
        np.testing.assert_allclose(other[name].mean, plain[name].mean, atol=1e-12)
        np.testing.assert_allclose(covariance(other[name]), covariance(plain[name]), atol=1e-12)


def virtual(share=0.5, bad=None, dtype=torch.float32):
    features, labels = world(SIZES)
    given = torch.from_numpy(features).to(dtype), torch.from_numpy(labels)
    return given, VirtualFeatures.fit(*given, bad or {}, Calibrate(field="concept", head=25, share=share))


def test_only_a_share_of_rare_rows_gets_a_virtual_feature_as_long_as_its_own():
    (features, labels), draw = virtual()
    replaced = 0
    for index in range(len(labels)):
        for epoch in range(10):
            random = np.random.default_rng([0, epoch, index])
            found = draw(features[index], index, random)
            assert found.dtype == torch.float32 and found.shape == (6,)
            assert abs(found.norm() / features[index].norm() - 1) < 1e-5
            replaced += not torch.equal(found, features[index])
            if labels[index] < 4:
                assert torch.equal(found, features[index])
                assert (
                    random.random() == np.random.default_rng([0, epoch, index]).random()
                )  # nothing was drawn
    rare = 10 * int((labels >= 4).sum())
    assert abs(replaced - rare / 2) < 4 * (rare / 4) ** 0.5


def test_a_virtual_feature_is_a_pure_function_of_the_row_and_its_generator_and_near_its_class():
    (features, labels), draw = virtual(share=1.0)
    index = int((labels == 4).nonzero()[0])
    points = [draw(features[index], index, np.random.default_rng([0, epoch, index])) for epoch in (0, 0, 1)]
    assert torch.equal(points[0], points[1]) and not torch.equal(points[0], points[2])
    everyone = torch.stack([draw(features[index], index, np.random.default_rng(seed)) for seed in range(100)])
    centre = torch.nn.functional.normalize(torch.from_numpy(draw.gaussians[4].mean).float(), dim=0)
    assert torch.nn.functional.normalize(everyone.mean(0), dim=0) @ centre > 0.95


def test_bad_rows_teach_nothing():
    (features, labels), _ = virtual()
    broken = features.clone()
    broken[[3, 70]] = 0.0
    bad = {3: "truncated", 70: "truncated"}
    left = [row for row in range(len(labels)) if row not in bad]
    how = Calibrate(field="concept", head=25)
    without = VirtualFeatures.fit(features[left], labels[left], {}, how)
    other = VirtualFeatures.fit(broken, labels, bad, how)
    assert set(other.gaussians) == set(without.gaussians)
    for name, gaussian in without.gaussians.items():
        assert np.array_equal(gaussian.mean, other.gaussians[name].mean)


def test_no_common_class_is_told():
    with pytest.raises(
        DataError, match="data.calibrate.head: no class has 100 rows, the largest has 60; lower it"
    ):
        fit(*world(SIZES), head=100)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("head", 0, ">= 1"),
        ("near", 0, ">= 1"),
        ("neighbours", -1, ">= 0"),
        ("blend", 1.5, "between 0 and 1"),
        ("shrink", -0.1, ">= 0"),
        ("share", -0.5, "between 0 and 1"),
    ],
)
def test_ranges(field, value, told):
    with pytest.raises(ValueError, match=f"{field} must be {told}, got {value}"):
        Calibrate(**{"field": "concept", "head": 5, field: value})
