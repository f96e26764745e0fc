"""What a report shows of a retrieval: queries with their first answers, some typical and the worst."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlalign.evals.metrics.ranks import Ranks, places, shared
from vlalign.evals.reading import Pictures


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` places spread over `count`, the same ones each time."""
    return (
        [(2 * place + 1) * count // (2 * wanted) for place in range(wanted)]
        if count > wanted
        else list(range(count))
    )


def worst(ranks: Ranks, wanted: int) -> list[int]:
    """The queries whose best right key stands lowest; those that are found first do not count."""
    where = places(ranks)
    order = where.argsort(descending=True, stable=True)[:wanted].tolist()
    return [query for query in order if where[query] > 1]


def show(
    queries: Sequence[dict[str, Any]],
    keys: Sequence[dict[str, Any]],
    features: tuple[Tensor, Tensor],
    groups: tuple[Tensor, Tensor],
    ranks: Ranks,
    chosen: Sequence[int],
    top: int = 5,
) -> list[dict[str, Any]]:
    """Of each chosen query: itself, its place, its first answers, and the best right key as `wanted`."""
    if not chosen:
        return []
    at = torch.tensor(chosen)
    scores = features[0][at] @ features[1].T
    right = shared(groups[0][at], groups[1])
    first = scores.topk(min(top, len(keys))).indices.tolist()
    wanted = scores.masked_fill(~right, -torch.inf).argmax(1).tolist()
    where = places(ranks)[at].tolist()
    return [
        {
            "query": queries[query],
            "place": where[row],
            "answers": [{**keys[key], "right": bool(right[row, key])} for key in first[row]],
            "wanted": keys[wanted[row]],
        }
        for row, query in enumerate(chosen)
    ]


def thumbnails(pictures: Pictures, shown: Sequence[dict[str, Any]], size: int) -> dict[str, str]:
    """A `data:` URI for each row that an exhibit names as `picture`, by the row's number."""
    items = [item for entry in shown for item in (entry["query"], entry["wanted"], *entry["answers"])]
    rows = sorted({int(item["picture"]) for item in items if "picture" in item})
    return {str(row): pictures.thumbnail(row, size) for row in rows}
