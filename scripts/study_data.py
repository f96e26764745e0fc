"""The data of the comparison: rows of emoji and of clip art as frozen towers see them, and their splits."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from cells import Rows, Towers

from vlalign.data.hashing import hash63
from vlalign.data.splits import held_out
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES
from vlalign.train.model import build

RECIPE = "recipes/align/quickstart.yaml"
EMOJI, CLIP_ART = "emoji", "clip art"
SETS = {
    "seen style": {"name": "emoji", "style": "google"},
    "unseen style": {"name": "emoji", "style": "twitter"},
    "flags": {"name": "emoji", "style": "google", "flags": "only"},
    CLIP_ART: {"name": "openclipart", "captions": ["title_and_keywords", "description"]},
}
STRATUM = {EMOJI: "subcategory", CLIP_ART: "category"}
TAGS = 16  # of a row, at most
UNSEEN, VALIDATION = 0.25, 0.2  # of the concepts, and of those that are left
# What stands where a caption should: on many pictures alike, or the name of a file.
BOILERPLATE = (
    "click here to see more pictures like this one",
    "free shipping on all orders this week only",
    "image may be subject to copyright",
    "please enable cookies to view this page",
    "view from the living room to the kitchen",
)
NAMES = tuple(f"IMG_{7 * number:05}.JPG" for number in range(400))
FOUND: dict[str, Rows] = {}


class Split(NamedTuple):
    """Rows to learn from, and rows of other concepts to be tuned and measured on."""

    learned: Rows
    measured: Mapping[str, Rows]


def data() -> Mapping[str, Rows]:
    """Every set as the quickstart's towers see it, from their caches where they have seen it; and `junk`."""
    if not FOUND:
        towers = Towers(build(load_recipe(RECIPE, [], verb="train")))
        for name, spec in SETS.items():
            source, fields = SOURCES.decode(spec).build(), ("concept", "category")
            if name == CLIP_ART:
                FOUND[name] = towers.rows(source, fields, sentences=True)
            else:
                FOUND[name] = _with_tags(towers.rows(source, (*fields, "subcategory"), ("order",)))
        FOUND["junk"] = towers.texts([*BOILERPLATE, *NAMES])
    return FOUND


def split(seed: int, name: str = EMOJI) -> Split:
    """By concept: a quarter is unseen, and of the rest a fifth is what an arm is tuned on."""
    own = data()["seen style" if name == EMOJI else name]
    strata = dict(zip(_words(own, "concept"), _words(own, STRATUM[name]), strict=True))
    unseen = held_out(strata, UNSEEN, seed)
    validation = held_out({x: where for x, where in strata.items() if x not in unseen}, VALIDATION, seed)
    measure = {"validation": own.at(_among(own, validation)), "seen style": own.at(_among(own, unseen))}
    if name == EMOJI:
        other = data()["unseen style"]
        measure |= {"unseen style": other.at(_among(other, unseen)), "flags": data()["flags"]}
    return Split(own.at(_among(own, unseen | validation).logical_not()), measure)


def _with_tags(rows: Rows) -> Rows:
    """`tags` [N, TAGS] of what follows the label in a caption; no two rows share what fills them up."""
    captions = [rows.words[number] for number in rows.fields["caption"].tolist()]
    tags = [[hash63(tag) for tag in caption.split(", ")[1:]][:TAGS] for caption in captions]
    filled = [each + [-1 - row] * (TAGS - len(each)) for row, each in enumerate(tags)]
    return rows.having(tags=torch.tensor(filled))


def _words(rows: Rows, name: str) -> Sequence[str]:
    return [str(number) for number in rows.fields[name].tolist()]


def _among(rows: Rows, concepts: frozenset[str]) -> torch.Tensor:
    return torch.tensor([concept in concepts for concept in _words(rows, "concept")])
