"""What was measured of pairs -> the log-odds that they are right, each told by others than itself."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlalign.data.hashing import hash63
from vlalign.types import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
INNER = 5  # parts of what a regression learns from, by which its penalty is chosen
STRENGTHS = np.logspace(-4, 2, 7)  # the inverse of a penalty


def concepts(same: Sequence[Sequence[Hashable]]) -> Ints:
    """A number of each query [Q], alike where queries share anything, directly or by others."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    every = {each: place for place, each in enumerate(dict.fromkeys(x for own in same for x in own))}
    edges = np.array([(query, len(same) + every[x]) for query, own in enumerate(same) for x in own])
    rows, columns = edges.reshape(-1, 2).astype(int).T
    size = len(same) + len(every)
    joined = coo_matrix((np.ones(len(rows)), (rows, columns)), (size, size))
    found: Ints = connected_components(joined, directed=False)[1][: len(same)].astype(np.int64)
    return found


def calibrated(
    measured: Floats,
    right: NDArray[np.bool_],
    concept: Ints,
    folds: int,
    learns: NDArray[np.bool_] | None = None,
) -> Floats:
    """Log-odds [P]. `measured` [P, W], `right`, `concept` [P]; a concept is in one fold. `learns` [P]: what
    regressions see.

    Raises UserError where a regression has nothing to tell right from wrong by.
    """
    if (found := len(np.unique(concept))) < 2:
        raise UserError(
            f"calibrate: all queries are of {found} concept, by what they ask and what is right for them, "
            "and each is told by others; give queries that have less in common"
        )
    fold, told = parted(concept, folds), np.zeros(len(measured))
    for each in np.unique(fold):
        own = fold == each
        others = ~own if learns is None else ~own & learns
        model = _learnt(measured[others], right[others], concept[others])
        told[own] = model.decision_function(measured[own])
    return told


def _learnt(measured: Floats, right: NDArray[np.bool_], concept: Ints) -> Any:
    """The regression, its penalty chosen by the likelihood of concepts that it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    inner = parted(concept, INNER)
    splits = [(np.flatnonzero(inner != part), np.flatnonzero(inner == part)) for part in np.unique(inner)]
    if len(splits) < 2 or any(len(np.unique(right[some])) < 2 for split in splits for some in split):
        raise UserError(
            f"calibrate: {int(right.sum())} of {len(right)} pairs of {len(np.unique(concept))} concepts are "
            "right, and a regression needs some of both kinds wherever it looks: give more queries"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    strengths = {"logisticregression__C": STRENGTHS}
    return GridSearchCV(model, strengths, scoring="neg_log_loss", cv=splits).fit(measured, right)


def parted(concept: Ints, parts: int) -> Ints:
    """Concepts dealt evenly to so many parts, in an order that is chance's and always the same."""
    order = sorted(np.unique(concept).tolist(), key=lambda each: hash63(str(each)))
    of = {each: place % parts for place, each in enumerate(order)}
    return np.array([of[each] for each in concept.tolist()])
