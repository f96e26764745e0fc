"""Rows -> the tensors of one chunk. Runs in the loader's workers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlalign.data.hashing import hash63
from vlalign.types import Batch, Inputs

Process = Callable[[Sequence[Any]], Inputs]  # a tower's: pictures or strings -> inputs


def collate(rows: Sequence[Mapping[str, Any]], image_process: Process, text_process: Process) -> Batch:
    """A chunk of pairs: query side pictures, key side texts.

    Each row holds `image` and `texts`, what the two processes take, `caption`, `id` and other strings. Where
    rows have several texts, as many each, the key side has the first row's first. Fields are int64 [N], equal
    where the strings are: `row` is the id, `caption` the drawn caption in any case, and every other string
    goes by its name. What `annotations` holds by name becomes a field [N, *] as it is. Of rows with a `whole`
    picture beside `image` these are `teacher`, as the query side is.
    """
    fields = {name: _numbers(rows, name) for name in _names(rows)}
    for name in rows[0].get("annotations", ()):
        fields[name] = torch.stack([row["annotations"][name] for row in rows])
    whole = {"teacher": image_process([row["whole"] for row in rows])} if "whole" in rows[0] else {}
    return {
        **whole,
        "query": image_process([row["image"] for row in rows]),
        "key": text_process([text for row in rows for text in row["texts"]]),
        "query_fields": fields,
        "key_fields": dict(fields),
        "ids": [row["id"] for row in rows],
        "bad": [],
        "converted": [],
    }


def stack_features(features: Sequence[Tensor]) -> Inputs:
    """The process of a locked tower: its cached outputs, [width] each, -> {"features": [N, width]}."""
    return {"features": torch.stack(list(features)).float()}


def _names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`row`, `caption`, and the other string fields that every row has."""
    own = ("id", "text", "caption")  # a source's own `text` is no label
    shared = set.intersection(
        *({key for key, value in row.items() if isinstance(value, str)} for row in rows)
    )
    return ["row", "caption", *sorted(shared - set(own))]


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> Tensor:
    if name == "row":
        return torch.tensor([hash63(row["id"]) for row in rows])
    if name == "caption":
        return torch.tensor([hash63(row["caption"].strip().casefold()) for row in rows])
    return torch.tensor([hash63(row[name]) for row in rows])
