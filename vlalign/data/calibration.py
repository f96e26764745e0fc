"""Gaussians of classes of features, the rare ones calibrated by common ones that are near.

RCAL, Zhang et al. 2022, https://arxiv.org/abs/2211.10955, section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vlalign.types import DataError

SEEN = 1000  # points of a class that outliers are told by, or the cost would grow with its square


@dataclass(frozen=True, slots=True)
class Gaussian:
    """N(mean, sum of weight * factor^T factor + noise * I), drawn from without any D x D covariance.

    A factor is the centred points of a class over sqrt(n - 1): mixed with standard normal weights they have
    just the covariance of the class. A class of one point has a factor of zeros.
    """

    mean: np.ndarray  # [D]
    parts: tuple[tuple[float, np.ndarray], ...]  # weight, factor [n, D]
    noise: float = 0.0

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Points [count, D]; the cost is that of the points of all factors."""
        points: np.ndarray = np.repeat(self.mean[None], count, 0)
        for weight, factor in self.parts:
            points += weight**0.5 * random.standard_normal((count, len(factor)), factor.dtype) @ factor
        points += self.noise**0.5 * random.standard_normal(points.shape)
        return points

    def variance(self) -> float:
        """The mean over axes, without the noise."""
        return float(sum(weight * np.square(factor).sum() for weight, factor in self.parts) / len(self.mean))


class Calibration(Protocol):
    """How classes are told apart, and how much rare ones are made like common ones."""

    @property
    def head(self) -> int:
        """Rows from which on a class is common, and keeps its own Gaussian."""

    @property
    def near(self) -> int:
        """How many common classes a rare one is made like: those of the nearest means."""

    @property
    def blend(self) -> float:
        """What weighs these in its mean and covariance; 1 - `blend` weighs its own."""

    @property
    def shrink(self) -> float:
        """How much of its mean variance is added to every axis."""

    @property
    def neighbours(self) -> int:
        """Of the local outlier factor, by which points are left out; 0: none is."""

    @property
    def share(self) -> float:
        """Of the rows of rare classes, those that get a point of their class."""


def calibrated(features: np.ndarray, labels: np.ndarray, how: Calibration) -> dict[int, Gaussian]:
    """The Gaussian of each label, from features [N, D] and int labels [N].

    The near common classes are weighed by their rows over the distance of their mean, which is ours. Raises
    DataError when no class is common.
    """
    names, counts = np.unique(labels, return_counts=True)
    rows = dict(zip(names.tolist(), counts.tolist(), strict=True))
    common = [name for name, count in rows.items() if count >= how.head]
    if not common:
        raise DataError(
            f"data.calibrate.head: no class has {how.head} rows, the largest has {max(counts)}; lower it"
        )
    groups = np.split(features[np.argsort(labels, kind="stable")], counts.cumsum()[:-1])
    own = {name: _gaussian(_inliers(group, how.neighbours)) for name, group in zip(rows, groups, strict=True)}
    return {
        name: own[name] if rows[name] >= how.head else _blended(own, name, common, rows, how) for name in rows
    }


def _inliers(points: np.ndarray, most: int) -> np.ndarray:
    """The points whose local outlier factor is low, by distances to `SEEN` of them at most."""
    neighbours = min(most, len(points) - 1, SEEN - 1)
    if neighbours < 2:
        return points
    from sklearn.neighbors import LocalOutlierFactor

    drawn = np.random.default_rng(0).permutation(len(points)) < SEEN
    factors = LocalOutlierFactor(n_neighbors=neighbours, novelty=True).fit(points[drawn])
    kept = np.empty(len(points), dtype=bool)
    kept[drawn] = factors.negative_outlier_factor_ >= factors.offset_
    if not drawn.all():
        kept[~drawn] = factors.predict(points[~drawn]) > 0
    return points[kept]


def _blended(
    own: Mapping[int, Gaussian], name: int, common: list[int], rows: Mapping[int, int], how: Calibration
) -> Gaussian:
    means = np.stack([own[each].mean for each in common])
    distances = np.linalg.norm(means - own[name].mean, axis=1)
    near = np.argsort(distances, kind="stable")[: how.near]
    shares = np.array([rows[common[each]] for each in near]) / np.maximum(distances[near], 1e-12)
    shares = how.blend * (shares / shares.sum())
    mean = (1 - how.blend) * own[name].mean + shares @ means[near]
    blended = [
        (1 - how.blend, own[name]),
        *((share, own[common[each]]) for share, each in zip(shares, near, strict=True)),
    ]
    parts = tuple((float(weight), gaussian.parts[0][1]) for weight, gaussian in blended if weight > 0)
    return Gaussian(mean, parts, how.shrink * Gaussian(mean, parts).variance())


def _gaussian(points: np.ndarray) -> Gaussian:
    """Of points [n, D]; where there are more than D, the factor is the triangle with the same covariance."""
    mean = points.mean(0, dtype=np.float64)
    centred = (points - mean) / max(len(points) - 1, 1) ** 0.5
    factor: Any = np.linalg.qr(centred, mode="r") if len(points) > len(mean) else centred
    return Gaussian(mean, ((1.0, factor.astype(points.dtype)),))


@dataclass(frozen=True)
class VirtualFeatures:
    """Virtual features for rows of rare classes: the rows of an epoch are as many, and less alike.

    `gaussians`: by label, of the rare classes; `share`: of their rows that get one.
    """

    gaussians: Mapping[int, Gaussian]
    labels: np.ndarray  # [N]
    share: float

    @classmethod
    def fit(cls, features: Tensor, labels: Tensor, bad: Mapping[int, str], how: Calibration) -> Self:
        """From a locked tower's features [N, D] of any lengths; those of `bad` rows are not there.

        Raises DataError when no class is common.
        """
        names, good = labels.numpy(), np.ones(len(labels), dtype=bool)
        good[list(bad)] = False
        gaussians = calibrated(F.normalize(features, dim=-1).numpy()[good], names[good], how)
        counts = dict(zip(*np.unique(names[good], return_counts=True), strict=True))
        rare = {name: one for name, one in gaussians.items() if counts[name] < how.head}
        return cls(rare, names, how.share)

    def __call__(self, feature: Tensor, index: int, random: np.random.Generator) -> Tensor:
        """The feature of a row, or in its place a point of its class, as long. Common rows draw nothing."""
        gaussian = self.gaussians.get(int(self.labels[index]))
        if gaussian is None or random.random() >= self.share:
            return feature
        point = torch.from_numpy(gaussian.draw(1, random)[0]).to(feature)
        return F.normalize(point, dim=-1).mul(feature.norm())
