"""What the benchmarks read: Open Clip Art, in a random order that is always the same."""

from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import torch

from vlalign.registry import SOURCES
from vlalign.types import BadRow, Limits

DATA = {"name": "openclipart"}


@cache
def clip_art(count: int) -> Sequence[Any]:
    """So many rows with pictures that are quickly read."""
    source = SOURCES.decode(DATA).build(Limits(pixels=2**19))
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    return list(islice(_readable(source, order), count))


def _readable(source: Any, order: Sequence[int]) -> Any:
    """Its rows, but for those that are damaged or too large."""
    for index in order:
        try:
            yield source[index]
        except BadRow:
            continue
