"""Optimizer steps as lists of collated chunks, the same with any number of workers and after any resume."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlalign.data.augment import Augmentation, augment
from vlalign.data.bad_rows import name_of, refused
from vlalign.data.collate import Process, collate, stack_features
from vlalign.data.sampler import order, parts, share, smallest, span
from vlalign.data.workers import attended, leave_interrupts_to_the_parent
from vlalign.types import BadRow, Batch, DataError, Sample, Source


class TextFeatures(NamedTuple):
    """A locked tower's outputs for every caption; row i has `features[offsets[i]:offsets[i + 1]]`."""

    features: Tensor  # [captions, width]
    offsets: Tensor  # int64 [rows + 1]


class Key(NamedTuple):
    """One chunk: places [start, stop) of an epoch's order."""

    epoch: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Chunks(Dataset[Batch | DataError]):
    """What a worker does, map-style over `Key`s. It returns a failure, to reach the user unwrapped."""

    source: Source
    image_process: Process
    text_process: Process
    seed: int
    augment: Augmentation | None
    on_error: Literal["skip", "raise"]
    image_features: Tensor | None
    text_features: TextFeatures | None
    known_bad: Mapping[int, str]

    def __getitem__(self, key: Key) -> Batch | DataError:
        """The chunk, bad rows left out and told in `bad`; without a good one it has only `ids` and `bad`."""
        rows: list[dict[str, Any]] = []
        bad: list[tuple[str, str]] = []
        for index in order(len(self.source), self.seed, key.epoch)[key.start : key.stop].tolist():
            try:
                rows.append(self.draw(index, key.epoch))
            except BadRow as error:
                name = name_of(self.source, index)
                if self.on_error == "raise":
                    return refused(name, error.reason, str(error))
                bad.append((name, error.reason))
        if not rows:
            return {"ids": [], "bad": bad}
        converted = [(row["id"], mark) for row in rows for mark in row["conversions"]]
        return {**collate(rows, self.image_process, self.text_process), "bad": bad, "converted": converted}

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """A row as this epoch sees it: one of its captions, its picture augmented. Raises BadRow."""
        if index in self.known_bad:
            raise BadRow(self.known_bad[index])
        random = np.random.default_rng([self.seed, epoch, index])
        sample = self._sample(index)
        captions = sample["captions"]
        which = int(random.integers(len(captions)))
        image, text = sample["image"], captions[which]
        if self.image_features is not None:
            image = self.image_features[index]
        elif self.augment is not None:
            image = augment(image, random, self.augment)
        if self.text_features is not None:
            text = self.text_features.features[self.text_features.offsets[index] + which]
        return {**sample, "image": image, "text": text, "caption": captions[which]}

    def _sample(self, index: int) -> Sample:
        """The row; nothing is decoded when the image tower's output is at hand."""
        if self.image_features is None:
            return self.source[index]
        row = {"image": None, "captions": self.source.captions(index), "conversions": ()}
        return row | self.source.fields(index)


def loader(
    source: Source,
    processors: tuple[Process, Process],
    *,
    batch: int,
    seed: int,
    steps: int,
    start_step: int = 0,
    chunk: int | None = None,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    augment: Augmentation | None = None,
    on_error: Literal["skip", "raise"] = "skip",
    image_features: Tensor | None = None,
    text_features: TextFeatures | None = None,
    known_bad: Mapping[int, str] | None = None,
) -> Iterator[list[Batch]]:
    """Chunks of one rank's steps, `start_step` to `steps`; `batch` is global, `chunk` the rows of a forward.

    Every row is in exactly one step of an epoch; `sampler.span` says which. A bad row is told as (id, reason)
    in `bad` of its step, a converted picture in `converted`. All ranks have equally many chunks in a step,
    none of them empty: where bad rows alone would be a chunk, the next good row of the epoch stands in.
    `known_bad`: reasons of rows without features.

    Raises DataError: fewer rows than ranks, no usable row, or, when `on_error` is `raise`, the first bad row.
    """
    rows = len(source)
    if smallest(rows, batch) < world:
        raise DataError(
            f"batches of {smallest(rows, batch)} rows (of {rows}) cannot be shared by {world} ranks"
        )
    skipped = [(name, reason) for reason, names in source.skipped.items() for name in names]
    if on_error == "raise" and skipped:
        raise refused(*skipped[0])
    chunks = Chunks(
        source=source,
        image_process=processors[0] if image_features is None else stack_features,
        text_process=processors[1] if text_features is None else stack_features,
        seed=seed,
        augment=augment,
        on_error=on_error,
        image_features=image_features,
        text_features=text_features,
        known_bad=known_bad or {},
    )
    plan = partial(_keys, rows, batch, chunk, rank, world)
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


def _keys(rows: int, batch: int, chunk: int | None, rank: int, world: int, step: int) -> list[Key]:
    epoch, start, stop = span(rows, batch, step)
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
    rows, some = len(chunks.source), True
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
