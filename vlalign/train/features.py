"""Features of locked towers, computed once and kept on disk, so that they never run while training."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vlalign.data.bad_rows import name_of, refused
from vlalign.data.chunks import TextFeatures
from vlalign.files import cache_folder
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import image_features, text_features
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.progress import Display
from vlalign.train.runtime import Runtime
from vlalign.train.together import together
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
    rows = Reader(source, recipe.data.on_error == "raise")
    for side in sorted(model.locked):
        found.caches[side] = FeatureCache.of(model.tower(side), cache_folder() / "features")
    if kept(recipe, model, "image"):
        embed = partial(image_features, model.tower("image"), opening=rows.picture)
        features = compute("image", embed, range(len(source)), found.caches["image"], runtime, display)
        whole = torch.zeros(len(source), *features.shape[1:])
        whole[[index for index in range(len(source)) if index not in rows.bad]] = features
        found.arguments["image_features"] = whole
    if kept(recipe, model, "text"):
        with together(runtime):
            flat, offsets = rows.captions()
        embed = partial(text_features, model.tower("text"))
        features = compute("text", embed, flat, found.caches["text"], runtime, display)
        found.arguments["text_features"] = TextFeatures(features, offsets)
    everyone = {index: row for other in runtime.gather(rows.bad) for index, row in other.items()}
    bad = sorted(everyone.items())
    found.bad, found.converted = {name: why for _, (name, why) in bad}, rows.converted
    found.arguments["known_bad"] = {index: why for index, (_, why) in bad}
    return found


def kept(recipe: TrainRecipe, model: Any, side: str) -> bool:
    """Whether a side's features are: its tower is locked, and nothing is augmented."""
    augment = recipe.data.augment
    same = augment.identity if side == "image" else augment.text is None
    return recipe.feature_cache and side in model.locked and same


class Reader:
    """Reads rows of a source by their places, in any thread; what was met is remembered.

    A row that could once not be read stays so. Raises DataError there when that is what the recipe wants.
    """

    def __init__(self, source: Source, strict: bool) -> None:
        self.source, self.strict = source, strict
        self.bad: dict[int, tuple[str, str]] = {}  # place -> id and reason
        self.converted: dict[str, list[str]] = {}

    def picture(self, index: int) -> Any:
        """The picture, or None."""
        row = self._read(index, self.source.__getitem__)
        if row is not None and row.get("conversions"):
            self.converted[row["id"]] = list(row["conversions"])
        return row and row["image"]

    def captions(self) -> tuple[list[str], Tensor]:
        """Every caption, and where those of each row begin and end, [rows + 1]; a bad row has none."""
        found = [self._read(index, self.source.captions) or () for index in range(len(self.source))]
        offsets = torch.tensor([0, *map(len, found)]).cumsum(0)
        return [caption for captions in found for caption in captions], offsets

    def fields(self, index: int) -> Mapping[str, str]:
        """Its strings, or none."""
        return self._read(index, self.source.fields) or {}

    def _read(self, index: int, read: Callable[[int], Any]) -> Any:
        if index in self.bad:
            return None
        try:
            return read(index)
        except BadRow as error:
            name = name_of(self.source, index)
            if self.strict:
                raise refused(name, error.reason, str(error)) from error
            self.bad[index] = (name, error.reason)
            return None


def compute(
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
            with together(runtime):
                embed(items[runtime.rank :: runtime.world], cache=cache, progress=progress)
        with together(runtime):
            rows = embed(items, cache=cache, progress=None if runtime.world > 1 else progress)
    computed = len(cache) - before
    display.say(f"{side} features: {len(rows):,} rows, {computed:,} new in {cache.folder}")
    return rows
