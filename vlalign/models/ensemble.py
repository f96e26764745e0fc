"""Joined stages of training, Zhang et al. 2024, https://arxiv.org/abs/2402.11816: concat(f_0, ..., f_S)."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import PART
from vlalign.specs import Embedder
from vlalign.types import UserError

HELD = 64  # images of an iterator that are held at once


class Ensemble:
    """An Embedder: the unit rows of S stages side by side, over sqrt(S), so that rows are unit again.

    So a cosine is the mean of the stages' cosines. Stages may be of any architecture and width.
    """

    def __init__(self, stages: Sequence[Embedder]) -> None:
        """`stages`: what `vlalign.load` gives, in any order. Raises UserError for none."""
        if not stages:
            raise UserError("an ensemble needs at least one model, got none")
        self.stages = list(stages)

    def encode_image(self, images: Iterable[Any]) -> Tensor:
        """Images, as each stage takes them, -> unit rows [N, D_1 + ... + D_S], float32 on the CPU."""
        if not isinstance(images, Iterator):
            return _joined([stage.encode_image(images) for stage in self.stages])
        windows = iter(lambda: list(islice(images, HELD)), [])  # for every stage reads all of them
        with ExitStack() as stack:
            for stage in self.stages:
                stack.enter_context(_whole_parts(stage))
            return torch.cat([self.encode_image(window) for window in windows] or [self.encode_image([])])

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Strings -> unit rows [N, D_1 + ... + D_S], float32 on the CPU."""
        return _joined([stage.encode_text(texts) for stage in self.stages])

    def score(self, queries: Sequence[Any], candidates: Sequence[Sequence[Any]]) -> list[Tensor]:
        """Mean cosines [C_q] of each query with its candidates. A str is a text, a `Path` an image."""
        scores = [stage.score(queries, candidates) for stage in self.stages]
        return [torch.stack(own).mean(0) for own in zip(*scores, strict=True)]


class _Parts(FeatureCache):
    """Holds the rows that are put into another cache until they are a whole part of it."""

    def __init__(self, cache: FeatureCache) -> None:
        super().__init__()
        self.cache, self.held = cache, dict[str, Tensor]()

    def get(self, hashes: Sequence[str]) -> list[Tensor | None]:
        found = self.cache.get(hashes)
        return [self.held.get(own) if row is None else row for own, row in zip(hashes, found, strict=True)]

    def put(self, hashes: Sequence[str], features: Tensor) -> None:
        self.held.update(zip(hashes, features, strict=True))
        if len(self.held) >= PART:
            self.flush()

    def flush(self) -> None:
        if self.held:
            self.cache.put(list(self.held), torch.stack(list(self.held.values())))
            self.held.clear()


@contextmanager
def _whole_parts(stage: Embedder) -> Iterator[None]:
    """Inside, windows of images share the parts of a stage's feature cache, which are files."""
    caches = stage.caches if isinstance(stage, DualEncoderEmbedder) else {}
    if "image" not in caches:
        yield
        return
    parts = _Parts(cache := caches["image"])
    caches["image"] = parts
    try:
        yield
    finally:
        caches["image"] = cache
        parts.flush()


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return torch.cat(tuple(rows), dim=1) / math.sqrt(len(rows))
