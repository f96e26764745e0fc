"""Queries of a picture and a text, with their answers, out of captions: what a combiner learns from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vlalign.data.bad_rows import name_of
from vlalign.data.near_duplicates import picture_digest
from vlalign.data.relations import Nouns, Relation, of_file, relations
from vlalign.data.triplets import Triplet, Triplets, concreteness, read_norms
from vlalign.files import write_json, write_text
from vlalign.infer.pictures import called, kept, written
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.triplets import TripletsRecipe
from vlalign.types import BadRow, Item, UserError


def triplets(recipe: TripletsRecipe, progress: Callable[[int], None] = lambda count: None) -> Path:
    """Write `out/{recipe.yaml, triplets.jsonl, triplets.json, images/}`; returns `out`.

    What this recipe left there before is replaced. `progress` hears of triplets that are found. Raises
    UserError, also where one is not found in so many tries as the recipe says.
    """
    out, skipped = claim(recipe), dict[str, list[str]]()
    source: Any = None if recipe.data is None else recipe.data.build(recipe.limits)
    if source is None:
        first = dict[Any, Path]()  # of files that are equal, one stands for all
        found = [
            each._replace(image=first.setdefault(picture_digest(each.image) or each.image, each.image))
            for each in of_file(Path(str(recipe.records)).expanduser(), skipped)
        ]
    else:
        found = _parsed(source, skipped)
    among = Triplets(found, recipe.least_images)
    chosen, drawn = _chosen(recipe, among, progress)
    pictures = dict[Any, Item]()
    for each in (one for triplet in chosen for one in triplet):
        if each.image not in pictures:
            pictures[each.image] = kept(_picture(source, each.image), out / "images")
    with writing(out):
        write_text(out / "triplets.jsonl", "".join(_line(at, x, pictures) for at, x in enumerate(chosen)))
        write_json(
            out / "triplets.json",
            {
                "relations": len(found),
                "subjects": len(among.subjects),
                "triplets": len(chosen),
                "draws": drawn,
                "skipped": {reason: len(ids) for reason, ids in skipped.items()},
            },
        )
    return out


def _parsed(source: Any, skipped: dict[str, list[str]]) -> list[Relation]:
    """What captions say of each picture, called by its first row; where it cannot be read, nothing."""
    nouns, found, rows = Nouns.wordnet(), dict[Relation, None](), dict[str, int]()
    for row in range(len(source)):
        try:
            said = [each for caption in source.captions(row) for each in relations(caption, nouns)]
            first = rows.setdefault(called(source[row]["image"]), row) if said else row
        except BadRow as error:
            skipped.setdefault(error.reason, []).append(name_of(source, row))
            continue
        found |= dict.fromkeys(Relation(first, *each) for each in said)
    return [*found]


def _chosen(
    recipe: TripletsRecipe, among: Triplets, progress: Callable[[int], None]
) -> tuple[list[Triplet], int]:
    """As many as are wanted, and how many were drawn for them. Raises UserError."""
    norms = None if recipe.concreteness is None else read_norms(Path(recipe.concreteness).expanduser())
    found, drawn = list[Triplet](), 0
    for place in range(recipe.count):
        random = np.random.default_rng([recipe.seed, place])
        for _ in range(recipe.tries):
            drawn += 1
            one = among.draw(random)
            if one and (norms is None or concreteness(one, norms) > recipe.threshold):
                found.append(one)
                break
        else:
            raise UserError(
                f"triplet {place + 1} of {recipe.count} was not found in {recipe.tries} tries among "
                f"{len(among.subjects)} subjects; lower threshold, raise tries, or give more relations"
            )
        progress(1)
    return found, drawn


def _picture(source: Any, image: Any) -> Item:
    return Item(images=(image if source is None else source[image]["image"],))


def _line(place: int, triplet: Triplet, pictures: dict[Any, Item]) -> str:
    """As the source `candidates` reads it."""
    reference, target, distractor = (written(pictures[each.image]) for each in triplet)
    row = {
        "id": f"t{place}",
        "query": {"text": triplet.condition, **reference},
        "candidates": [
            {"id": "target", **target, "label": 1},
            {"id": "distractor", **distractor, "label": 0},
        ],
    }
    return json.dumps(row) + "\n"
