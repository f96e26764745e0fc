"""Tokenizers that take a third of a second to make, in a suite that makes a thousand."""

import sys
from copy import copy
from functools import cache
from typing import Any


def make_once() -> None:
    """From now on open_clip's own is read once for each of its options; every model has a copy of it."""
    if factory := sys.modules.get("open_clip.factory"):
        read = cache(factory.SimpleTokenizer)

        def copied(**options: Any) -> Any:
            return copy(read(**options))

        factory.SimpleTokenizer = copied
