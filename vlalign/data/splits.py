"""Which concepts are held out: whole groups, evenly from every stratum, by the seed alone."""

from collections.abc import Mapping
from math import floor
from typing import Literal

from vlalign.data.hashing import hash63

Split = Literal["train", "unseen", "all"]


def held_out(strata: Mapping[str, str], fraction: float, seed: int) -> frozenset[str]:
    """The groups that are unseen in training, from a map of group -> stratum.

    Systematic sampling: groups are laid out stratum by stratum, shuffled within it, and one in 1 / fraction
    is taken from a random start. A stratum of n groups gives n * fraction of them, rounded up or down.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"unseen must be between 0 and 1, got {fraction}")
    line = sorted(strata, key=lambda group: (strata[group], hash63(seed, group)))
    start = hash63(seed, "start") / 2**63
    marks = [floor(start + place * fraction + 1e-9) for place in range(len(line) + 1)]
    return frozenset(group for place, group in enumerate(line) if marks[place + 1] > marks[place])


def keeps(split: Split, group: str, unseen: frozenset[str]) -> bool:
    """Whether a row of this group belongs to the split."""
    return split == "all" or (group in unseen) == (split == "unseen")
