"""Features of locked towers, computed once and kept on disk, so that they never run while training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlalign.data.bad_rows import refused
from vlalign.data.catalogue import cache_folder, writing
from vlalign.data.loader import TextFeatures
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import image_features, text_features
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
            found.caches[side] = FeatureCache.of(model.tower(side), folder)
    if "image" in found.caches and recipe.data.augment.identity:
        pictures = _Pictures(source, recipe.data.on_error == "raise")
        embed = partial(image_features, model.tower("image"), opening=pictures)
        rows = _compute("image", embed, range(len(source)), found.caches["image"], runtime, display)
        whole = torch.zeros(len(source), rows.shape[1])
        bad = sorted(pictures.bad.items())
        known = {index: why for index, (_, why) in bad}
        whole[[index for index in range(len(source)) if index not in known]] = rows
        found.bad, found.converted = {name: why for _, (name, why) in bad}, pictures.converted
        found.arguments |= {"image_features": whole, "known_bad": known}
    if "text" in found.caches:
        captions = [source.captions(index) for index in range(len(source))]
        flat = [text for texts in captions for text in texts]
        offsets = torch.tensor([0, *(len(texts) for texts in captions)]).cumsum(0)
        embed = partial(text_features, model.tower("text"))
        rows = _compute("text", embed, flat, found.caches["text"], runtime, display)
        found.arguments["text_features"] = TextFeatures(rows, offsets)
    return found


class _Pictures:
    """Opens pictures of a source by their places, in any thread; what was met is remembered."""

    def __init__(self, source: Source, strict: bool) -> None:
        self.source, self.strict = source, strict
        self.bad: dict[int, tuple[str, str]] = {}
        self.converted: dict[str, list[str]] = {}

    def __call__(self, index: int) -> Any:
        """The picture; None where it cannot be read, or a DataError when that is what the recipe wants."""
        try:
            row = self.source[index]
        except BadRow as error:
            name = self.source.fields(index)["id"]
            if self.strict:
                raise refused(name, error.reason, str(error)) from error
            self.bad[index] = (name, error.reason)
            return None
        if row.get("conversions"):
            self.converted[row["id"]] = list(row["conversions"])
        return row["image"]


def _compute(
    side: str,
    embed: Callable[..., Tensor],
    items: Sequence[Any],
    cache: FeatureCache,
    runtime: Runtime,
    display: Display,
) -> Tensor:
    """Every process fills its share of the cache, then each reads all of it."""
    before = len(cache)
    with display.counting(f"{side} features", len(items)) as progress:
        if runtime.world > 1:
            embed(items[runtime.rank :: runtime.world], cache=cache, progress=progress)
            runtime.meet()
        rows = embed(items, cache=cache, progress=None if runtime.world > 1 else progress)
    computed = len(cache) - before
    display.say(f"{side} features: {len(rows):,} rows, {computed:,} added to {cache.folder}")
    return rows
