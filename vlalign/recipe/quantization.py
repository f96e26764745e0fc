"""What a recipe of `vlalign quantize` may say."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vlalign.recipe.offline import named
from vlalign.recipe.reads import reads
from vlalign.registry import IMPORTANCES, SOURCES
from vlalign.specs import Importance, SourceSpec
from vlalign.types import Limits


@dataclass(frozen=True, kw_only=True)
class QuantizeRecipe:
    """`vlalign quantize`: writes `out/{recipe.yaml, model/}`. `model`: of a reranker, folder or Hub id.

    The Linear layers of its stack of layers are changed, embeddings and head are not. `bits`: of a weight.
    `group`: columns that share a scale, None for a whole row. `symmetric`: no offset beside a scale.
    `rotate`: the hidden states of a language model are turned first, drawn by `seed`. `method`: `round` each
    weight to the nearest, or `gptq`, which corrects those that are not rounded yet by what `samples` pairs of
    `data`, drawn by `seed`, look like to each layer: `damping` of the mean diagonal, `act_order` for the
    largest diagonal first. `importance` weighs their tokens from `low` to `high`, raised to `power`, mean 1.
    """

    verb: Literal["quantize"]
    out: str
    model: str
    bits: int = 4
    group: int | None = None
    symmetric: bool = False
    rotate: bool = False
    method: Literal["round", "gptq"] = "gptq"
    data: Annotated[SourceSpec, SOURCES] | None = None
    samples: int = 256
    damping: float = 0.01
    act_order: bool = False
    importance: Annotated[Importance, IMPORTANCES] | None = None
    low: float = 0.01
    high: float = 1.0
    power: float = 1.0
    seed: int = 0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "model")
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be from 2 to 8, got {self.bits}")
        for name in ("group", "samples"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 < self.damping < 1:
            raise ValueError(f"damping must be above 0 and below 1, got {self.damping}")
        if not 0 <= self.low < self.high:
            raise ValueError(f"low must be >= 0 and below high, got {self.low} and {self.high}")
        if not self.power > 0:
            raise ValueError(f"power must be above 0, got {self.power}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be >= 0 and below 2**63, got {self.seed}")
        if self.method == "round" and (self.importance is not None or self.data is not None):
            raise ValueError("method: round looks at no rows; leave data and importance out, or take gptq")
        if self.method == "gptq" and self.data is None:
            raise ValueError("data is not set, and gptq looks at rows; name queries with candidates")
        if self.data is not None and reads(self.data) != "candidates":
            raise ValueError("data must be queries with candidates, as the source `candidates` reads them")
