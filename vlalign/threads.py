"""Work that threads do while the caller does its own."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = min(8, os.cpu_count() or 1)  # more would hold more pictures in memory than a forward can use


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int = THREADS, most: int = 0) -> Iterator[R]:
    """What `work` makes of each item, in order; up to `most` items (at least `threads`) are begun early.

    `items` are taken by the caller's thread. What `work` raises is raised at its item's turn.
    """
    rest = iter(items)
    pool = ThreadPoolExecutor(threads)
    begun = deque(pool.submit(work, item) for item in islice(rest, max(threads, most)))
    try:
        while begun:
            result = begun.popleft().result()
            begun.extend(pool.submit(work, item) for item in islice(rest, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
