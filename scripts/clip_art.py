"""What the benchmarks read: Open Clip Art, in a random order that is always the same."""

from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import torch

from vlalign.registry import SOURCES
from vlalign.types import BadRow, Limits

DATA = {"name": "openclipart"}


def _order(source: Any) -> list[int]:
    found: list[int] = torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist()
    return found


@lru_cache(maxsize=1)
def clip_art(count: int) -> Sequence[Any]:
    """So many rows with pictures that are quickly read. Raises ValueError when there are not as many."""
    source = SOURCES.decode(DATA).build(Limits(pixels=2**19))
    found: list[Any] = []
    for index in _order(source):
        with suppress(BadRow):
            found.append(source[index])
        if len(found) == count:
            return found
    raise ValueError(f"Open Clip Art has {len(found)} such pictures, not {count}")


def captions(count: int) -> list[str]:
    """The first captions of so many rows."""
    source = SOURCES.decode(DATA).build()
    return [source.captions(index)[0] for index in _order(source)[:count]]
