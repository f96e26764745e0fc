"""What a recipe of `vlalign name` may say."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vlalign.recipe.offline import named
from vlalign.recipe.reads import PAIRS, reads
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits

PLACE = "{name}"


@dataclass(frozen=True, kw_only=True)
class NameRecipe:
    """`vlalign name`: writes `out/{recipe.yaml, captions.jsonl, named.json, images/}`.

    `model`: folder or Hub id of a dual encoder. `data`: pictures, whose captions and labels are not read.
    `vocabulary`: `wordnet` for its 118,000 nouns and their glosses, else a file of names, one a line; as
    `.jsonl`, of `{"name": ..., "descriptions": [...]}`. Pictures are put into so many `clusters` as they seem
    to be of classes; in each of `rounds` a cluster is named by votes, Zhang et al. 2023,
    https://arxiv.org/abs/2308.12960. `describe`: descriptions tell the first three names of a cluster apart.
    `template`: how a name is put to the model, with the place {name} once.

    `captions.jsonl` has for the source `jsonl`, of each picture, its `id`, `image`, a copy in `images`, name
    as `caption`, the template with it as `prompt`, and `cluster`. Run again, it is written anew; what towers
    give is kept in the user's cache (`feature_cache`), so that this is quick.
    """

    verb: Literal["name"]
    out: str
    model: str
    data: Annotated[SourceSpec, SOURCES]
    vocabulary: str
    clusters: int
    rounds: int = 3
    describe: bool = True
    template: str = "a picture of {name}"
    seed: int = 0
    feature_cache: bool = True
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "model", "vocabulary")
        if reads(self.data) != PAIRS:
            raise ValueError("data must be pictures, as the source `jsonl` reads them, not queries")
        for name in ("clusters", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.template.count(PLACE) != 1:
            raise ValueError(f"template must have the place {PLACE} once, got {self.template!r:.80}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and below 2**32, got {self.seed}")
