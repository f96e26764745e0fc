"""Whether changed pictures are better: to the encoder, and beside pictures that were never bad."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from PIL import Image
from torch import Tensor

from vlalign.evals.attribute import look
from vlalign.evals.gallery import evenly
from vlalign.evals.reading import data_uri, read_pictures
from vlalign.ops.direction import read, score
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import EvalRow, SourceSpec
from vlalign.types import DataError, Limits, Sample, Source, UserError

LEAST = 1 / 12  # of the mean squared error of values up to 255: what rounding alone makes


@EVALUATORS.register("enhancement")
@dataclass(frozen=True, kw_only=True)
class Enhancement:
    """An enhancer's pictures of `data`, made at most `size` pixels a side first, along a `direction`.

    `score` is their mean along it, `past` the share beyond its target, where few positive examples lie, and
    `overshoot` how far, as a mean of all. `original`: the same rows as they should be, for `psnr`, in dB, and
    `brightness_error`, of grey values from 0 to 1. Chance is that of changing nothing.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    direction: str
    original: Annotated[SourceSpec, SOURCES] | None = None
    size: int = 224
    gallery: int = 8
    every: int = 0

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("gallery", 0), ("every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def __call__(self, model: Any, limits: Limits) -> list[EvalRow]:
        """One row. `model`: an Embedder that can `enhance` pictures. Raises UserError."""
        if not hasattr(model, "enhance"):
            raise UserError("enhancement asks for pictures, and several joined models make none; measure one")
        found, source = read(self.direction), self.data.build(limits)
        beside = Beside(source, self.original.build(limits) if self.original else None)
        chosen, measured, shown = evenly(len(source), self.gallery), list[Any](), list[dict[str, str]]()

        def changed(pairs: Iterator[Any]) -> Tensor:
            def both() -> Iterator[Image.Image]:
                for place, (worse, original) in enumerate(pairs):
                    before = worse.copy()
                    before.thumbnail((self.size, self.size), Image.Resampling.LANCZOS, reducing_gap=None)
                    (after,) = model.enhance([before])
                    wanted = original and original.resize(before.size, Image.Resampling.LANCZOS)
                    measured.append([wanted and distances(each, wanted) for each in (before, after)])
                    if place in chosen:
                        named = {"before": before, "after": after, "original": wanted}
                        shown.append({name: data_uri(each) for name, each in named.items() if each})
                    yield from (before, after)

            rows: Tensor = model.encode_image(both())
            return rows.view(-1, 2, rows.shape[1])

        seen = read_pictures(model, beside, changed)
        if seen.features.shape[2:] != found.vector.shape:
            raise UserError(
                f"direction: {self.direction} has {len(found.vector)} numbers and embeddings have "
                f"{seen.features.shape[2]}; name one that was fitted with this model's encoder"
            )
        before, after = (along(score(rows, found.vector), found.target) for rows in seen.features.unbind(1))
        if self.original is not None:
            for own, part in zip((before, after), np.array(measured).mean(0).tolist(), strict=True):
                own |= dict(zip(("psnr", "brightness_error"), part, strict=True))
        exhibits, named = {"rows": seen.account(), "changes": shown}, {"dataset": self.dataset}
        return [EvalRow(**named, task="enhancement", metrics=after, chance=before, exhibits=exhibits)]


class Beside:
    """A Source of pairs of pictures: a row's own and, where there is one, the original's."""

    def __init__(self, source: Source, originals: Source | None) -> None:
        self.source, self.originals = source, originals
        self.licences, self.skipped = source.licences, source.skipped
        self.fields, self.captions = source.fields, source.captions
        if originals is not None and len(originals) != len(source):
            raise DataError(
                f"original: {len(originals)} rows, and data has {len(source)}; name the same rows"
            )

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        """One row. Raises BadRow, and DataError where the original is another row."""
        row = self.source[index]
        original = self.originals[index] if self.originals is not None else {**row, "image": None}
        if original["id"] != row["id"]:
            raise DataError(f"original: row {index} is '{original['id']}', and of data it is '{row['id']}'")
        return {**row, "image": (row["image"], original["image"])}


def distances(picture: Image.Image, wanted: Image.Image) -> tuple[float, float]:
    """PSNR of two RGB pictures of one size, in dB, and how far their mean grey values differ."""
    error = np.square(np.asarray(picture, np.float64) - np.asarray(wanted, np.float64)).mean()
    return 10 * np.log10(255**2 / max(error, LEAST)), abs(look(picture)[0] - look(wanted)[0])


def along(scores: Tensor, target: float) -> dict[str, float]:
    """What scores [N] say of pictures that should reach a target, and not go beyond it."""
    beyond = scores - target
    return {
        "score": scores.mean().item(),
        "past": (beyond > 0).double().mean().item(),
        "overshoot": beyond.clamp(min=0).mean().item(),
    }
