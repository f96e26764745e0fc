"""Two rankers on the same queries: their mean difference, as Student's t-test for pairs sees it.

Of the tests in use it errs least, Urbano et al. 2019, https://arxiv.org/abs/1905.11096.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np


def paired(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> dict[str, float]:
    """`difference`, the mean of first - second over queries, its interval `low` to `high`, two-sided `p`.

    p is never below 2^(1-Q), what flipping the signs of Q differences could show. Of one query there is only
    a difference.
    """
    from scipy.stats import t

    differences = np.subtract(first, second, dtype=np.float64)
    queries, mean = len(differences), float(differences.mean())
    if queries < 2:
        return {"difference": mean}
    error = float(differences.std(ddof=1)) / sqrt(queries)
    reach = float(t.ppf((1 + level) / 2, queries - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, queries - 1)) if error else float(mean == 0)
    return {"difference": mean, "low": mean - reach, "high": mean + reach, "p": max(p, 2.0 ** (1 - queries))}
