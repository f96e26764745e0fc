"""What a recipe of `vlalign direction` may say."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

from vlalign.recipe.naming import PLACE
from vlalign.recipe.offline import named
from vlalign.recipe.reads import PAIRS, reads
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits

# Pictures by a source; or texts, in a list or by the name of a file that has one a line.
Examples = str | tuple[str, ...] | Annotated[SourceSpec, SOURCES]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Pictures that the direction is measured on."""

    positive: Annotated[SourceSpec, SOURCES]
    negative: Annotated[SourceSpec, SOURCES]


@dataclass(frozen=True, kw_only=True)
class Words:
    """Names, as `vlalign name` has them, of which those at both ends are told. `template`: as there."""

    vocabulary: str
    template: str = "a picture of {name}"

    def __post_init__(self) -> None:
        named(self, "vocabulary")
        if self.template.count(PLACE) != 1:
            raise ValueError(f"template must have the place {PLACE} once, got {self.template!r:.80}")


@dataclass(frozen=True, kw_only=True)
class DirectionRecipe:
    """`vlalign direction`: writes `out/{recipe.yaml, direction.safetensors, direction.json}`.

    `model`: folder or Hub id of a dual encoder. `positive`, `negative`: examples that have an attribute and
    that lack it: pictures of a source, a list of texts, or a file of texts, one a line. `fit`: `residual`,
    the difference of their means, Gaintseva et al. 2024, https://arxiv.org/abs/2404.01889 (RAVE); `pair`, a
    vector for each that tells them apart, learnt for `steps` of Adam at the rate `lr` from a start that
    `seed` draws; or `prompt`, the embedding of a text for each, 16 of whose tokens are learnt alike, Liang et
    al. 2023, https://arxiv.org/abs/2303.17569 (CLIP-LIT-Latent; CLIP-LIT, but for a word after its tokens).
    `against`: files of directions of the same model; this one is made orthogonal to all of them.

    `words`: names whose ends are told in `direction.json`. `held_out`: pictures that its sign is measured on,
    beside logistic regressions on brightness and on colours where the examples are pictures. `rank`:
    pictures that are sorted by their score, highest first, in `scores.jsonl`; `remove`: and whose embeddings
    without the direction are written to `removed.safetensors`, `embeddings` [N, D] in the same order.
    """

    verb: Literal["direction"]
    out: str
    model: str
    positive: Examples
    negative: Examples
    fit: Literal["residual", "pair", "prompt"] = "residual"
    steps: int = 1000
    lr: float = 5e-4
    seed: int = 0
    against: tuple[str, ...] = ()
    words: Words | None = None
    held_out: HeldOut | None = None
    rank: Annotated[SourceSpec, SOURCES] | None = None
    remove: bool = False
    feature_cache: bool = True
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "model")
        held = self.held_out
        pictures = {"held_out.positive": held and held.positive, "held_out.negative": held and held.negative}
        pictures["rank"] = self.rank
        for name in ("positive", "negative"):
            examples = getattr(self, name)
            if isinstance(examples, str | tuple):
                named(self, name)
            else:
                pictures[name] = examples
        for name, source in pictures.items():
            if source is not None and reads(source) != PAIRS:
                raise ValueError(f"{name} must be pictures, as the source `folder` reads them, not queries")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if not (isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"lr must be > 0 and finite, got {self.lr}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be >= 0 and below 2**32, got {self.seed}")
        if self.remove and self.rank is None:
            raise ValueError("remove is of the pictures of rank; name some there")
