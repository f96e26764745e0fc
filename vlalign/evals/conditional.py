"""Queries of a picture and a text with galleries: scores of the whole and of each part, and recalls."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vlalign.evals.metrics.ranks import hits, of_galleries
from vlalign.types import DataError, Scorer

PLACES = (1, 2, 3)


class Apart:
    """A scorer of queries as they are, of their pictures alone and of their texts alone: scores [C, 3]."""

    def __init__(self, model: Scorer) -> None:
        self.model = model

    def score(self, queries: Sequence[Any], candidates: Sequence[Sequence[Any]]) -> list[Tensor]:
        """Of each query. Raises DataError where one has no picture or no text."""
        for each in queries:
            if not (getattr(each, "images", ()) and each.text.strip()):
                raise DataError(f"each query must have a picture and a text, and one has not: {each!r:.80}")
        asked = [*queries, *(replace(each, text="") for each in queries), *(each.text for each in queries)]
        found, count = self.model.score(asked, [*candidates] * 3), len(queries)
        return [torch.stack(found[at::count], 1) for at in range(count)]


def recalls(scores: Sequence[Tensor], right: Sequence[int]) -> dict[str, list[float]]:
    """R@k of each query, by metric. `scores` [G_q, 3]: of the whole query, its picture and its text.

    `sum_`: of the sum of both parts' scores, which ranks as the sum of their rows does.
    """
    ways = {
        "": [each[:, 0] for each in scores],
        "picture_": [each[:, 1] for each in scores],
        "text_": [each[:, 2] for each in scores],
        "sum_": [each[:, 1] + each[:, 2] for each in scores],
    }
    ranks = {way: of_galleries(own, right) for way, own in ways.items()}
    return {f"{way}R@{k}": hits(own, k).tolist() for way, own in ranks.items() for k in PLACES}
