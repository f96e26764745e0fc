"""Features of locked towers, computed once and kept on disk, so that they never run while training."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlalign.data.bad_rows import refused
from vlalign.data.catalogue import cache_folder, writing
from vlalign.data.loader import TextFeatures
from vlalign.models.feature_cache import FeatureCache, features, tower_key
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.progress import Display
from vlalign.train.runtime import Runtime
from vlalign.types import BadRow, Source


@dataclass
class Locked:
    """What is known of locked sides. `arguments`: the loader's; `caches`: by side, for evaluations too."""

    arguments: dict[str, Any] = field(default_factory=dict)
    caches: dict[str, FeatureCache] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)  # id -> reason
    converted: dict[str, list[str]] = field(default_factory=dict)  # id -> what was done


def locked_features(
    recipe: TrainRecipe, model: Any, source: Source, runtime: Runtime, display: Display
) -> Locked:
    """The features of each locked side, where the recipe wants them kept and no augmentation changes them.

    Raises DataError at the first bad row when `data.on_error` is `raise`.
    """
    found = Locked()
    if not recipe.feature_cache:
        return found
    for side in sorted(model.locked):
        folder = cache_folder() / "features"
        with writing(folder):
            found.caches[side] = FeatureCache(folder, tower_key(model.tower(side)))
    if "image" in found.caches and recipe.data.augment.identity:
        pictures = _Pictures(source, recipe.data.on_error == "raise")
        rows = _compute("image", model, pictures, found.caches["image"], runtime, display)
        whole = torch.zeros(len(source), rows.shape[1])
        whole[pictures.good] = rows
        found.bad, found.converted = {name: why for name, why in pictures.bad.values()}, pictures.converted
        known = {index: why for index, (_, why) in pictures.bad.items()}
        found.arguments |= {"image_features": whole, "known_bad": known}
    if "text" in found.caches:
        captions = [source.captions(index) for index in range(len(source))]
        flat = [text for texts in captions for text in texts]
        offsets = torch.tensor([0, *(len(texts) for texts in captions)]).cumsum(0)
        rows = _compute("text", model, flat, found.caches["text"], runtime, display)
        found.arguments["text_features"] = TextFeatures(rows, offsets)
    return found


class _Pictures:
    """The pictures of a source that can be read, each time it is gone through; what was met is remembered."""

    def __init__(self, source: Source, strict: bool) -> None:
        self.source, self.strict = source, strict
        self.good: list[int] = []
        self.bad: dict[int, tuple[str, str]] = {}
        self.converted: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Any]:
        self.good = []
        for index in range(len(self.source)):
            try:
                row = self.source[index]
            except BadRow as error:
                name = self.source.fields(index)["id"]
                if self.strict:
                    raise refused(name, error.reason, str(error)) from error
                self.bad[index] = (name, error.reason)
                continue
            self.good.append(index)
            if row.get("conversions"):
                self.converted[row["id"]] = list(row["conversions"])
            yield row["image"]


def _compute(
    side: str, model: Any, items: Any, cache: FeatureCache, runtime: Runtime, display: Display
) -> Tensor:
    """Every process fills its share of the cache, then each reads all of it."""
    before = len(cache)
    with display.counting(f"{side} features", len(items)) as progress:
        if runtime.world > 1:
            features(model.tower(side), _share(items, runtime), cache, progress=progress)
            runtime.meet()
        rows = features(model.tower(side), items, cache, progress=None if runtime.world > 1 else progress)
    computed = len(cache) - before
    display.say(f"{side} features: {len(rows):,} rows, {computed:,} added to {cache.folder}")
    return rows


def _share(items: Iterable[Any], runtime: Runtime) -> Iterator[Any]:
    return (item for index, item in enumerate(items) if index % runtime.world == runtime.rank)
