"""From paired measurements to a verdict: intervals, Holm's correction, what could have been seen at all."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True, kw_only=True)
class Paired:
    """A method less the baseline over the same seeds. `low`, `high`: the 95 % interval of the mean.

    `p`: of a two-sided paired t-test. `detectable`: the difference that the test finds at 80 % power, once
    it is corrected for the size of the table.
    """

    seeds: int
    mean: float
    low: float
    high: float
    p: float
    detectable: float


def paired(method: Mapping[int, float], baseline: Mapping[int, float], table: int = 1) -> Paired:
    """Compare two arms by seed; `table`: how many are compared. Raises ValueError when seeds differ."""
    if method.keys() != baseline.keys() or len(method) < 2:
        found = f"got {sorted(method)} and {sorted(baseline)}"
        raise ValueError(f"two arms of the same seeds, at least 2; {found}")
    difference = np.array([method[seed] - baseline[seed] for seed in sorted(method)], float)
    seeds, mean = len(difference), float(difference.mean())
    error = float(difference.std(ddof=1)) / seeds**0.5
    spread = stats.t(seeds - 1)
    width = float(spread.ppf(1 - LEVEL / 2)) * error
    p = float(2 * spread.sf(abs(mean) / error)) if error > 0 else float(mean == 0)
    detectable = float(spread.ppf(1 - LEVEL / 2 / table) + spread.ppf(POWER)) * error
    return Paired(seeds=seeds, mean=mean, low=mean - width, high=mean + width, p=p, detectable=detectable)


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for how many there are, Holm 1979: each the largest of those that come before it."""
    corrected, largest = {}, 0.0
    for place, name in enumerate(sorted(p, key=lambda name: p[name])):
        largest = max(largest, min(1.0, (len(p) - place) * p[name]))
        corrected[name] = largest
    return corrected


def verdict(found: Paired, corrected: float) -> str:
    """`helps`, `hurts`, or that nothing larger than what could be seen was seen; in points."""
    if corrected < LEVEL:
        return "helps" if found.mean > 0 else "hurts"
    return f"no difference larger than {100 * found.detectable:.1f}"
