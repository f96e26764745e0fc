"""The data of the comparison: rows of emoji and of clip art as frozen towers see them, and their splits."""

from collections.abc import Mapping, Sequence
from functools import cache
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
UNSEEN, VALIDATION = 0.25, 0.15
TUNING = 10_000  # the seed of the split that arms are tuned on; no other seed is that high
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
    """Rows to learn from, and rows of other concepts to be measured on."""

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


@cache
def aside(name: str) -> frozenset[str]:
    """Concepts that arms are tuned on: other splits learn them."""
    return held_out(_strata(name), VALIDATION, TUNING)


def split(seed: int, name: str = EMOJI) -> Split:
    """By concept: a quarter unseen of those that no arm is tuned on; or, on the seed of tuning, these."""
    everything, strata = data(), _strata(name)
    others = {concept: stratum for concept, stratum in strata.items() if concept not in aside(name)}
    unseen = aside(name) if seed == TUNING else held_out(others, UNSEEN, seed)
    own = _own(name)
    measure = {"seen style": own.at(_among(own, unseen))}
    if name == EMOJI:
        other = everything["unseen style"]
        measure |= {"unseen style": other.at(_among(other, unseen)), "flags": everything["flags"]}
    return Split(own.at(_among(own, unseen).logical_not()), measure)


def _with_tags(rows: Rows) -> Rows:
    """`tags` [N, TAGS] of what follows the label in a caption; no two rows share what fills them up."""
    captions = [rows.words[number] for number in rows.fields["caption"].tolist()]
    tags = [[hash63(tag) for tag in caption.split(", ")[1:]][:TAGS] for caption in captions]
    filled = [each + [-1 - row] * (TAGS - len(each)) for row, each in enumerate(tags)]
    return rows.having(tags=torch.tensor(filled))


def _own(name: str) -> Rows:
    return data()["seen style" if name == EMOJI else name]


def _strata(name: str) -> dict[str, str]:
    own = _own(name)
    return dict(zip(_words(own, "concept"), _words(own, STRATUM[name]), strict=True))


def _words(rows: Rows, name: str) -> Sequence[str]:
    return [str(number) for number in rows.fields[name].tolist()]


def _among(rows: Rows, concepts: frozenset[str]) -> torch.Tensor:
    return torch.tensor([concept in concepts for concept in _words(rows, "concept")])
