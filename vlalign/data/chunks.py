"""The rows of one chunk, read, drawn and collated: what a loader's worker does."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlalign.data.augment import Augmentation, augment
from vlalign.data.augment_text import augment_text
from vlalign.data.bad_rows import name_of, refused
from vlalign.data.calibration import VirtualFeatures
from vlalign.data.collate import Process, collate, stack_features
from vlalign.data.sampler import Order
from vlalign.specs import KNOWN_TEXTS
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
    order: Order
    on_error: Literal["skip", "raise"] = "skip"

    def __getitem__(self, key: Key) -> Batch | DataError:
        """The chunk, bad rows left out and told in `bad`; without a good one it has only `ids` and `bad`."""
        rows: list[dict[str, Any]] = []
        bad: list[tuple[str, BadRow]] = []
        for index in self.order.epoch(key.epoch)[key.start : key.stop].tolist():
            try:
                rows.append(self.draw(index, key.epoch))
            except BadRow as error:
                bad.append((name_of(self.source, index), error))
        try:
            made = self.collate(rows) if rows else {"ids": []}
        except BadRow:  # of a tower's process, which does not tell of which row
            tried = [(row, self._refusal(row)) for row in rows]
            bad += [(row["id"], error) for row, error in tried if error is not None]
            rows = [row for row, error in tried if error is None]
            made = self.collate(rows) if rows else {"ids": []}
        if bad and self.on_error == "raise":
            name, first = bad[0]
            return refused(name, first.reason, str(first))
        converted = [(row["id"], mark) for row in rows for mark in row.get("conversions", ())]
        return {**made, "bad": [(name, error.reason) for name, error in bad], "converted": converted}

    def random(self, index: int, epoch: int) -> np.random.Generator:
        """What a row's own draws are made from."""
        return np.random.default_rng([self.order.seed, epoch, index])

    @abstractmethod
    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """A row as this epoch sees it. Raises BadRow."""

    @abstractmethod
    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Rows -> the tensors of a chunk, with `ids`."""

    def _refusal(self, row: Mapping[str, Any]) -> BadRow | None:
        """Why a row alone cannot be collated, if so."""
        try:
            self.collate([row])
        except BadRow as error:
            return error
        return None


@dataclass(frozen=True, kw_only=True)
class Pairs(Chunks):
    """Pictures and their captions. `known_bad`: reasons of rows without features.

    `annotations`: fields of rows besides those of the source, values [rows, *] by name. `virtual`: of rare
    rows. `texts`: of a row; where more than one, its first caption and so many of the others, of which the
    field `known_texts` tells what there is.
    """

    image_process: Process
    text_process: Process
    augment: Augmentation | None = None
    image_features: Tensor | None = None
    text_features: TextFeatures | None = None
    known_bad: Mapping[int, str] = field(default_factory=dict)
    annotations: Mapping[str, Tensor] = field(default_factory=dict)
    virtual: VirtualFeatures | None = None
    texts: int = 1

    def draw(self, index: int, epoch: int) -> dict[str, Any]:
        """One of its captions or several, its picture changed or virtual. Raises BadRow."""
        if index in self.known_bad:
            raise BadRow(self.known_bad[index])
        random = self.random(index, epoch)
        sample = self._sample(index)
        captions = sample["captions"]
        drawn = self._drawn(len(captions), random)
        image = sample["image"]
        if self.image_features is not None:
            image = self.image_features[index]
            if self.virtual is not None:
                image = self.virtual(image, index, random)
        elif self.augment is not None:
            if self.augment.teacher == "whole":
                sample = {**sample, "whole": image}
            image = augment(image, random, self.augment)
        texts = [self._text(index, captions, which, random) for which in drawn]
        annotations = {name: values[index] for name, values in self.annotations.items()}
        if self.texts > 1:
            annotations[KNOWN_TEXTS] = torch.arange(1, self.texts) < len(texts)
            texts += [texts[0]] * (self.texts - len(texts))
        seen = {"image": image, "texts": texts, "caption": captions[drawn[0]], "annotations": annotations}
        return {**sample, **seen}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Both sides through their processes, or as features."""
        image = self.image_process if self.image_features is None else stack_features
        text = self.text_process if self.text_features is None else stack_features
        return collate(rows, image, text)

    def _drawn(self, captions: int, random: np.random.Generator) -> list[int]:
        """Which of a row's captions."""
        if self.texts == 1:
            return [int(random.integers(captions))]
        others = random.permutation(captions - 1)[: self.texts - 1] + 1
        return [0, *others.tolist()]

    def _text(self, index: int, captions: Sequence[str], which: int, random: np.random.Generator) -> Any:
        """A caption as it is to be learned, or what the locked text tower makes of it."""
        if self.text_features is not None:
            return self.text_features.features[self.text_features.offsets[index] + which]
        if self.augment is not None and self.augment.text is not None:
            return augment_text(captions[which], random, self.augment.text)
        return captions[which]

    def _sample(self, index: int) -> Sample:
        """The row; nothing is decoded when the image tower's output is at hand."""
        if self.image_features is None:
            return self.source[index]
        row = {"image": None, "captions": self.source.captions(index), "conversions": ()}
        return row | self.source.fields(index)
