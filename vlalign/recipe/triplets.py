"""What a recipe of `vlalign triplets` may say."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

from vlalign.recipe.offline import named
from vlalign.recipe.reads import PAIRS, reads
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits


@dataclass(frozen=True, kw_only=True)
class TripletsRecipe:
    """`vlalign triplets`: writes `out/{recipe.yaml, triplets.jsonl, triplets.json, images/}`.

    Relations are those of a file `records`, lines `{"image", "subject", "predicate", "object"}`, or what the
    captions of `data` say, pictures with captions. A subject of `least_images` pictures or more, and of two
    objects, is drawn with odds as its pictures; reference and target are two of its pictures, with two
    objects, and the distractor shows the target's object with another subject. A query is the reference with
    `PREDICATE OBJECT` of the target; candidates are the target, label 1, and the distractor.

    `count` triplets, each from `seed` and its place alone, so that more of them begin with the same. With
    `concreteness`, a file of lines `word<tab>score`, the mean over the three subjects and objects is above
    `threshold`; a word or phrase that is not there is -1. `tries`: the most draws for one.
    """

    verb: Literal["triplets"]
    out: str
    records: str | None = None
    data: Annotated[SourceSpec, SOURCES] | None = None
    count: int = 1000
    least_images: int = 5
    tries: int = 1000
    concreteness: str | None = None
    threshold: float = 4.8
    seed: int = 0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", *(name for name in ("records", "concreteness") if getattr(self, name) is not None))
        if (self.records is None) == (self.data is None):
            raise ValueError("give a file of records, or data whose captions are read: one of both")
        if self.data is not None and reads(self.data) != PAIRS:
            raise ValueError("data must be pictures with captions, as the source `jsonl` reads them")
        for name in ("count", "least_images", "tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got {self.seed}")
