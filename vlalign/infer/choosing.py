"""Which candidates of a judged query stay: plain values in, places out."""

from collections.abc import Sequence
from typing import NamedTuple

from vlalign.recipe.judging import Choice


class Chosen(NamedTuple):
    """Of one query. `places`: of candidates that stay; `false`: of negatives that may be right."""

    places: list[int]
    false: list[int]


def chosen(
    scores: Sequence[float], right: Sequence[bool], choice: Choice, judged: Sequence[bool] | None = None
) -> Chosen:
    """By a judge's scores and what is labelled right. Without a positive nothing is suspected.

    `judged`: whose scores count, all by default; no other is suspected, or sets the bound.
    """
    judged = [True] * len(scores) if judged is None else judged
    told = [*zip(scores, right, judged, strict=True)]
    bound = min((score for score, own, counts in told if own and counts), default=None)
    false = [
        place
        for place, (score, own, counts) in enumerate(told)
        if not own
        and counts
        and bound is not None
        and score > bound - choice.margin
        and (choice.least is None or score > choice.least)
    ]
    suspected = set(false) if choice.treat != "soft" else set()
    rest = [place for place, own in enumerate(right) if not own and place not in suspected]
    strided = [place for start in range(choice.stride) for place in rest[start :: choice.stride]]
    kept = {place for place, own in enumerate(right) if own} | set(strided[: choice.k])
    if choice.treat == "relabel":
        kept |= suspected
    return Chosen(sorted(kept), false)
