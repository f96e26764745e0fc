"""What a recipe of `vlalign mine` may say."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

from vlalign.recipe.offline import check_written, named
from vlalign.recipe.reads import reads
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits


@dataclass(frozen=True, kw_only=True)
class MineRecipe:
    """`vlalign mine`: writes `out/{recipe.yaml, candidates.jsonl, run.trec, mined.json}`.

    `model`: folder or Hub id of a dual encoder, which is searched exactly, or of a reranker, which scores
    every query with every document. `data`: queries with candidates; those with a label above 0 are their
    positives. Documents are the candidates and the corpus of `data`, and those of the file `corpus`: lines
    `{"id", "text", "image" or "images"}`, whose ids the candidates of `data` use.

    `k` negatives a query are taken among its documents of the ranks `window`, the first of which is 1;
    positives have no rank of their own. `documents`: `all`, or those of the `corpus` alone, and not what
    other queries come with. Negatives score at most the lowest positive's score p less `margin`, at
    most p - `relative_margin` * |p|, and at most `max_score`; null: any. A text that shares so much with a
    positive or the query as `near_duplicate` says (Jaccard of shingles of three words; null: only the same
    text and the same picture) is none. `stride`: every so many of what is left, again from the next one when
    the end is reached, Gu et al. 2025, https://arxiv.org/abs/2510.13515.

    `positives`: `all` of a query are among its candidates, or those `retrieved`: then they have ranks as
    well, and those within the last of `window` are. `number`: what the score is called. `fusion`: how much
    of the picture, the rest is the text's, is in the embedding of what has both; of several pictures it is
    their mean.
    """

    verb: Literal["mine"]
    out: str
    model: str
    data: Annotated[SourceSpec, SOURCES]
    corpus: str | None = None
    k: int = 8
    window: tuple[int, int] = (1, 100)
    stride: int = 1
    margin: float | None = None
    relative_margin: float | None = None
    max_score: float | None = None
    near_duplicate: float | None = 0.9
    positives: Literal["all", "retrieved"] = "all"
    documents: Literal["all", "corpus"] = "all"
    number: str = "score"
    fusion: float = 0.5
    tag: str = "vlalign"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "model", "number", "tag", *(["corpus"] if self.corpus is not None else []))
        if reads(self.data) != "candidates":
            raise ValueError("data must be queries with candidates, as the source `candidates` reads them")
        first, last = self.window
        if not 1 <= first <= last:
            raise ValueError(f"window must be two ranks, 1 <= first <= last, got [{first}, {last}]")
        if not 1 <= self.k <= last - first + 1:
            raise ValueError(f"k must be from 1 to the {last - first + 1} ranks of window, got {self.k}")
        if self.stride < 1:
            raise ValueError(f"stride must be >= 1, got {self.stride}")
        for name in ("margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be >= 0 or null, got {value}")
        if self.max_score is not None and not isfinite(self.max_score):
            raise ValueError(f"max_score must be finite or null, got {self.max_score}")
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise ValueError(f"near_duplicate must be > 0 and <= 1, or null, got {self.near_duplicate}")
        if not 0 <= self.fusion <= 1:
            raise ValueError(f"fusion must be between 0 and 1, got {self.fusion}")
        check_written(self.number, self.tag)
