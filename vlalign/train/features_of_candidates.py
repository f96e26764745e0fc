"""Features of locked towers where rows are queries with candidates: of each of both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import torch

from vlalign.data.bad_rows import name_of, refused
from vlalign.data.chunks import TextFeatures
from vlalign.data.images import opened
from vlalign.data.keyed import Kind, Part, check, part_of, parts
from vlalign.files import cache_folder
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import image_features, text_features
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.features import compute
from vlalign.train.progress import Display
from vlalign.train.runtime import Runtime
from vlalign.train.together import together
from vlalign.types import BadRow, Item


@dataclass
class LockedCandidates:
    """`features` of queries and of candidates, by part, none where the tower learns; `bad`: reasons by id."""

    features: tuple[Mapping[Part, TextFeatures], Mapping[Part, TextFeatures]]
    caches: dict[str, FeatureCache]
    known_bad: dict[int, str] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)


def locked_candidates(
    recipe: TrainRecipe, model: Any, source: Any, sides: tuple[Kind, Kind], runtime: Runtime, display: Display
) -> LockedCandidates:
    """Where the recipe wants them kept. A row of which anything cannot be read is bad.

    Raises DataError at the first bad row when `data.on_error` is `raise`.
    """
    locked = set(model.locked) if recipe.feature_cache else set()
    caches = {
        side: FeatureCache.of(model.tower(side), cache_folder() / "features") for side in sorted(locked)
    }
    found = LockedCandidates(({}, {}), caches)
    if not locked & {part for kind in sides for part in parts(kind)}:
        return found
    with together(runtime):
        items = _read(recipe, source, sides, found)
    queries, candidates = (
        {
            part: _of(part, whose, model, caches[part], recipe, runtime, display)
            for part in parts(kind)
            if part in locked
        }
        for kind, whose in zip(sides, items, strict=True)
    )
    found.features = (queries, candidates)
    return found


def _read(
    recipe: TrainRecipe, source: Any, sides: tuple[Kind, Kind], found: LockedCandidates
) -> tuple[list[list[Item]], list[list[Item]]]:
    """The query and the candidates of each row, none of a bad one. A picture is opened to be sure of it."""
    queries, candidates = list[list[Item]](), list[list[Item]]()
    for index in range(len(source)):
        try:
            row = source[index]
            for kind, own in zip(sides, ([row["query"]], row["candidates"]), strict=True):
                for part, each in product(parts(kind), own):
                    shown = check(part_of(each, part) if kind == "both" else each, part)
                    if part == "image":
                        opened(shown, recipe.data.limits)
        except BadRow as error:
            name = name_of(source, index)
            if recipe.data.on_error == "raise":
                raise refused(name, error.reason, str(error)) from error
            found.known_bad[index], found.bad[name] = error.reason, error.reason
            queries.append([])
            candidates.append([])
            continue
        queries.append([row["query"]])
        candidates.append(list(row["candidates"]))
    return queries, candidates


def _of(
    kind: Part,
    items: list[list[Item]],
    model: Any,
    cache: FeatureCache,
    recipe: TrainRecipe,
    runtime: Runtime,
    display: Display,
) -> TextFeatures:
    flat = [each for own in items for each in own]
    tower = model.tower(kind)
    if kind == "image":
        embed = partial(image_features, tower, opening=partial(opened, limits=recipe.data.limits))
        features = compute(kind, embed, [each.images[0] for each in flat], cache, runtime, display)
    else:
        embed = partial(text_features, tower)
        features = compute(kind, embed, [each.text for each in flat], cache, runtime, display)
    return TextFeatures(features, torch.tensor([0, *map(len, items)]).cumsum(0))
