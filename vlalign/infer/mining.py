"""Which of a query's documents are its hard negatives: plain values in, places out."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from heapq import nlargest
from math import inf
from typing import NamedTuple

import numpy as np

from vlalign.recipe.mining import MineRecipe

Scored = list[tuple[float, str]]  # a score and the id of its document, the best first


class Mined(NamedTuple):
    """Of one query. `window`: the ranking between its bounds; `found`: positives ranked no lower than it."""

    window: Scored
    negatives: list[str]
    found: list[str]
    excluded: dict[str, int]


def best(scores: np.ndarray, ids: Sequence[str], count: int) -> list[int]:
    """Places of the highest scores, as many, by the one rule: score descending, then id descending."""
    places = list(range(len(scores)))
    if len(scores) > count:  # those that tie with the last are all kept until their ids have been compared
        places = np.flatnonzero(scores >= np.partition(scores, -count)[-count]).tolist()
    return nlargest(count, places, key=lambda place: (scores[place], ids[place]))


def mined(
    ranked: Scored,
    positives: Mapping[str, float],
    documents: Mapping[str, Hashable],
    likeness: Callable[[str], str],
    recipe: MineRecipe,
) -> Mined:
    """The negatives of a query. `ranked`: its best documents, as many as the window ends at, no positives.
    Where only what was `retrieved` is wanted, positives have ranks as well.

    `positives`: their scores by id; `documents`: what they say, of which each is taken once; `likeness`: why
    one must be no negative, or nothing. Of several reasons the first counts. Without positives there is no
    margin.
    """
    first, last = recipe.window
    if recipe.positives == "retrieved":
        every = sorted([*ranked, *((score, id) for id, score in positives.items())], reverse=True)
        window = [each for each in every[first - 1 : last] if each[1] not in positives]
        found = [id for _, id in every[:last] if id in positives]
    else:
        window = ranked[first - 1 : last]
        found = [id for id, own in positives.items() if sum(each > (own, id) for each in ranked) < last]
    lowest = min(positives.values(), default=inf)
    # As sentence-transformers' mine_hard_negatives: the lowest positive, and its size, so that the bound lies
    # below a score that is negative too. NV-Retriever, https://arxiv.org/abs/2407.15831, has p * (1 - r).
    bounds = {"margin": inf, "relative_margin": inf, "max_score": inf}
    if recipe.margin is not None:
        bounds["margin"] = lowest - recipe.margin
    if recipe.relative_margin is not None and positives:
        bounds["relative_margin"] = lowest - recipe.relative_margin * abs(lowest)
    if recipe.max_score is not None:
        bounds["max_score"] = recipe.max_score
    excluded, left = Counter[str](), dict[Hashable, str]()
    for score, id in window:
        over = next((name for name, bound in bounds.items() if score > bound), "")
        if reason := likeness(id) or over or ("repeated" if documents[id] in left else ""):
            excluded[reason] += 1
        else:
            left[documents[id]] = id
    kept = list(left.values())
    strided = [id for start in range(recipe.stride) for id in kept[start :: recipe.stride]]
    taken = set(strided[: recipe.k])
    return Mined(
        window=window,
        negatives=[id for id in kept if id in taken],
        found=found,
        excluded=dict(excluded),
    )
