"""Optimizer steps as lists of collated chunks, the same with any number of workers and after any resume."""

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from vlalign.data.bad_rows import refused
from vlalign.data.chunks import Chunks, Key
from vlalign.data.sampler import Order, parts, share
from vlalign.data.workers import attended, leave_interrupts_to_the_parent
from vlalign.types import Batch, DataError


def loader(
    chunks: Chunks,
    *,
    steps: int,
    start_step: int = 0,
    chunk: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[list[Batch]]:
    """Chunks of one rank's steps, `start_step` to `steps`; `chunk`: the rows of a forward.

    A bad row is told as (id, reason) in `bad` of its step, a converted picture in `converted`. All ranks have
    equally many chunks in a step, none of them empty: where bad rows alone would be a chunk, the next good
    row of the epoch stands in.

    Raises DataError: fewer rows than ranks, no usable row, or, when `on_error` is `raise`, the first bad row.
    """
    order, source = chunks.order, chunks.source
    if (least := order.smallest) < world:
        raise DataError(f"batches of {least} rows (of {order.rows}) cannot be shared by {world} ranks")
    skipped = [(name, reason) for reason, names in source.skipped.items() for name in names]
    if chunks.on_error == "raise" and skipped:
        raise refused(*skipped[0])
    plan = partial(_keys, order, chunk, rank, world)
    remaining = range(start_step, steps)
    made = DataLoader(
        chunks,
        batch_size=None,
        sampler=chain.from_iterable(map(plan, remaining)),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # its own, or making a loader would move the global random state
    )
    found = attended(made) if workers else iter(made)
    return (
        _step(chunks, keys, list(islice(found, len(keys))), least=1 if world == 1 else len(keys))
        for keys in map(plan, remaining)
    )


def _keys(order: Order, chunk: int | None, rank: int, world: int, step: int) -> list[Key]:
    epoch, start, stop = order.span(step)
    count, own = parts(stop - start, chunk, world), share(start, stop, rank, world)
    return [Key(epoch, *share(*own, part, count)) for part in range(count)]


def _step(chunks: Chunks, keys: list[Key], found: list[Batch | DataError], least: int) -> list[Batch]:
    """The chunks that have rows, at least so many; the bad rows of the others are told in the first."""
    for failure in found:
        if isinstance(failure, DataError):
            raise failure
    whole = [batch for batch in found if not isinstance(batch, DataError)]
    good = [batch for batch in whole if batch["ids"]]
    good += islice(_stand_ins(chunks, keys[-1]), max(0, least - len(good)))
    lost = [row for batch in whole if not batch["ids"] for row in batch["bad"]]
    return [{**good[0], "bad": [*good[0]["bad"], *lost]}, *good[1:]]


def _stand_ins(chunks: Chunks, key: Key) -> Iterator[Batch]:
    """The good rows after a rank's part, one a batch, round and round the epoch."""
    rows, some = int(chunks.order.bounds[-1]), True
    while some:
        some = False
        for place in range(key.stop, key.stop + rows):
            batch = chunks[Key(key.epoch, place % rows, place % rows + 1)]
            if isinstance(batch, dict) and batch["ids"]:
                some = True
                yield {**batch, "bad": [], "converted": []}
    raise DataError(f"none of the {rows} rows can be used; see the reasons in `bad`, or set on_error: raise")


def _as_it_is(batch: Any) -> Any:
    return batch
