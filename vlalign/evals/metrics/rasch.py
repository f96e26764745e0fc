"""One score per object from ordinal ratings by many raters, each with a severity of its own.

The many-facet Rasch model, as in Kennedy et al. 2020, https://arxiv.org/abs/2009.10277. Shapes: N objects,
such as pairs of a query and a candidate, I items (rubrics), J raters (judges or people), R ratings from 0 to
K - 1. Abilities, severities, difficulties and steps are in logits; all is float64.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlalign.types import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BAND = 0.5, 1.5  # of infit: below it a rater is too regular, above it too noisy
PRIOR = 5.0  # logits, standard deviation of all: keeps extremes finite, and hardly moves what was measured
SHOWN = 5  # ids and parts that an error names


@dataclass(frozen=True, kw_only=True)
class Rasch:
    """What `rasch` found. Severities and difficulties have mean 0, and so have the steps of an item.

    Fit is the mean square of residuals, 1 where they vary as the model expects, more where ratings are noisy,
    less where they are too regular. `infit` weighs by information, the sum of (x - mean)^2 over that of
    variances; `outfit` is the mean of (x - mean)^2 / variance. An `_error` is a standard error.
    """

    ability: Floats  # [N], high where an object is good
    ability_error: Floats  # [N]
    severity: Floats  # [J], high where a rater is strict
    severity_error: Floats  # [J]
    difficulty: Floats  # [I]
    steps: Floats  # [I, K - 1]
    rater_infit: Floats  # [J]
    rater_outfit: Floats  # [J]
    item_infit: Floats  # [I]
    item_outfit: Floats  # [I]

    @property
    def misfits(self) -> list[int]:
        """Raters whose infit is outside [0.5, 1.5]: best left out, and the rest fitted anew."""
        return np.flatnonzero((self.rater_infit < BAND[0]) | (self.rater_infit > BAND[1])).tolist()


def log_probabilities(location: Floats, steps: Floats) -> Floats:
    """Of each rating 0 to K - 1: [R, K], for location [R], ability - difficulty - severity, steps [R, K - 1].

    log(P_k / P_(k-1)) = location - step_k: Masters 1982, the partial credit model,
    https://doi.org/10.1007/BF02296272.
    """
    odds = np.pad((location[:, None] - steps).cumsum(1), ((0, 0), (1, 0)))
    return odds - np.logaddexp.reduce(odds, axis=1, keepdims=True)


def moments(log_p: Floats) -> tuple[Floats, Floats]:
    """Mean and variance [R] of ratings with log-probabilities [R, K]."""
    p, k = np.exp(log_p), np.arange(log_p.shape[1], dtype=np.float64)
    mean = p @ k
    return mean, (p * (k - mean[:, None]) ** 2).sum(1)


def rasch(
    objects: ArrayLike,
    items: ArrayLike,
    raters: ArrayLike,
    values: ArrayLike,
    *,
    categories: int,
    partial_credit: bool = False,
) -> Rasch:
    """Fits the model to R ratings: ids [R] from 0 on, and values [R] from 0 to `categories` - 1, integers.

    Items share their steps (rating scale), or have their own (`partial_credit`).

    It is the mode of the joint likelihood under a weak normal prior. Marginal likelihood takes abilities to
    be independent of who rates, and so errs where severe raters get the better objects; this does not. Its
    price: with L ratings of an object, distances are too wide by about L / (L - 1).

    Raises UserError for ids and values out of range, categories that nobody uses, and ratings of which two
    facets fall into parts: the one could move against the other, and no probability would change.
    """
    n, i, j, x = map(_integers, (objects, items, raters, values))
    if not 0 < len(n) == len(i) == len(j) == len(x):
        counts = [len(n), len(i), len(j), len(x)]
        raise UserError(f"give an object, item, rater and value for each rating, found {counts} of them")
    facets = {"object": n, "item": i, "rater": j}
    for name, ids in facets.items():
        if len(unused := np.flatnonzero(np.bincount(ids) == 0)):
            raise UserError(f"no rating has {name} {_few(unused)}: number those that are there, from 0 on")
    sets = np.arange(i.max() + 1) * partial_credit  # of each item, whose steps it has
    _check_values(x, sets[i], categories)
    for (one, ids), (two, others) in combinations(facets.items(), 2):
        check_joined(one, ids, two, others)
    (ability, difficulty, severity, steps), errors = _fit(n, i, j, x, sets[i], categories)
    steps = steps.reshape(-1, categories - 1)[sets]
    mean, variance = moments(log_probabilities(ability[n] - difficulty[i] - severity[j], steps[i]))
    square, fits = (x - mean) ** 2, {}
    for name, ids in ("rater", j), ("item", i):
        fits[f"{name}_infit"] = np.bincount(ids, square) / np.bincount(ids, variance)
        fits[f"{name}_outfit"] = np.bincount(ids, square / variance) / np.bincount(ids)
    fits |= {"ability_error": errors[0], "severity_error": errors[2]}
    return Rasch(ability=ability, severity=severity, difficulty=difficulty, steps=steps, **fits)


def _fit(n: Ints, i: Ints, j: Ints, x: Ints, own: Ints, categories: int) -> tuple[list[Floats], ...]:
    """Abilities, difficulties, severities and steps, and their standard errors, by Newton's method.

    The likelihood is concave. No rating has two objects, so their block of the curvature is diagonal, and
    what is left to solve has the size of the other parameters. These are kept at mean 0 by projection.
    """
    from scipy.linalg import block_diag
    from scipy.sparse import csr_array, diags_array, hstack, kron

    n_of, i_of, j_of, own_of = (csr_array((np.ones(len(a)), (np.arange(len(a)), a))) for a in (n, i, j, own))
    last, sets = categories - 1, int(own.max()) + 1
    sizes = [int(n.max()) + 1, int(i.max()) + 1, int(j.max()) + 1, sets * last]
    count, cuts = sizes[0], np.cumsum(sizes)[:-1]
    location = hstack([n_of, -i_of, -j_of]).tocsr()
    taken = np.tri(categories, last, -1)  # the steps below each value
    # of each value, the derivatives of its log-odds against 0, [R, parameters]
    designs = [hstack([k * location, -kron(own_of, taken[[k]])]).tocsr() for k in range(categories)]
    observed = sum(design.T @ (x == k) for k, design in enumerate(designs))
    mean = block_diag(*(np.full((size, size), 1 / size) for size in (*sizes[1:3], *[last] * sets)))
    centre = np.eye(len(mean)) - mean

    def log_p(w: Floats) -> Floats:
        return log_probabilities(location @ w[: cuts[2]], w[cuts[2] :].reshape(-1, last)[own])

    def height(w: Floats) -> float:
        return float(log_p(w)[np.arange(len(x)), x].sum() - (w / PRIOR) @ (w / PRIOR) / 2)

    w = np.zeros(sum(sizes))
    while True:
        weighed = [diags_array(p) @ d for p, d in zip(np.exp(log_p(w)).T, designs, strict=True)]
        expected = sum(weighed)
        slope = observed - expected.sum(0) - w / PRIOR**2
        curve = sum(d.T @ e for d, e in zip(designs, weighed, strict=True)) - expected.T @ expected
        alone = curve.diagonal()[:count] + PRIOR**-2
        cross = curve[:count, count:] @ centre
        drag = cross / alone[:, None]
        rest = centre @ curve[count:, count:].toarray() @ centre + centre / PRIOR**2
        spread = np.linalg.inv(rest - cross.T @ drag + mean) - mean  # the inverse where means are 0
        other = spread @ (slope[count:] - drag.T @ slope[:count])
        step = np.concatenate([slope[:count] / alone - drag @ other, other])
        if slope @ step < 1e-12 * len(x):
            break
        while height(w + step) < height(w):
            step /= 2
        w += step
    variance = np.concatenate([1 / alone + ((drag @ spread) * drag).sum(1), spread.diagonal()])
    error = np.sqrt(variance.clip(min=0))  # a facet of one has variance 0, but for rounding
    return np.split(w, cuts), np.split(error, cuts)


def _integers(column: ArrayLike) -> Ints:
    found = np.asarray(column)
    whole = found.ndim == 1 and found.dtype.kind in "iu"
    if not whole or (found < 0).any():
        told = f"found {found.min() if whole else f'{found.dtype} {[*found.shape]}'}"
        raise UserError(f"ids and values must be [R] integers from 0 on, {told}; number them anew")
    return found.astype(np.int64)


def _check_values(x: Ints, own: Ints, categories: int) -> None:
    if x.max() >= categories:
        raise UserError(f"values are 0 to {categories - 1}, found {x.max()}: mend it, or raise categories")
    if x.min() == x.max():
        raise UserError(f"all ratings are {x.max()}: a single category says nothing, leave such ratings out")
    used = np.bincount(own * categories + x, minlength=(own.max() + 1) * categories).reshape(-1, categories)
    for item, row in enumerate(used):
        if len(unused := np.flatnonzero(row == 0)):
            where = f" of item {item}" * (len(used) > 1)
            ways = "merge categories" + ", or let items share their steps" * (len(used) > 1)
            raise UserError(f"no rating{where} is {_few(unused)}, so steps to it have no place: {ways}")


def check_joined(one: str, ids: Ints, two: str, others: Ints) -> None:
    """Raises UserError for ids [R] of two facets that fall into parts without a rating between them."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count, size = ids.max() + 1, ids.max() + others.max() + 2
    graph = coo_array((np.ones(len(ids)), (ids, count + others)), shape=(size, size))
    parts, part = connected_components(graph, directed=False)
    if parts > 1:
        members = [np.flatnonzero(part == p) for p in range(min(parts, SHOWN))]
        told = [f"{one}s {_few(m[m < count])} with {two}s {_few(m[m >= count] - count)}" for m in members]
        listed = "; ".join(told + ["and others"] * (parts > SHOWN))
        raise UserError(
            f"no rating joins {parts} parts: {listed}. Add ratings that do, or fit each part alone"
        )


def _few(ids: Ints) -> str:
    return ", ".join(map(str, ids[:SHOWN])) + f" and {len(ids) - SHOWN} more" * (len(ids) > SHOWN)
