"""What a recipe of `vlalign synthesize` may say."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

from vlalign.recipe.offline import named
from vlalign.recipe.reads import reads
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import Limits

PLACE = "{query}"


@dataclass(frozen=True, kw_only=True)
class SynthesizeRecipe:
    """`vlalign synthesize`: writes `out/{recipe.yaml, documents.jsonl}`, for the source `synthetic`.

    `model`: a causal language model that transformers loads, by folder or Hub id. `data`: queries, whose
    candidates are not read to it. `prompt`: what it is asked, with the place {query} once; a tokenizer that
    has a chat template writes it as a conversation. `tokens`: the most of a document. `temperature`: 0 takes
    the likeliest token each time. What is drawn for a query depends on `seed` and its id alone. Killed and
    run again, or by several processes, it writes for each query once.
    """

    verb: Literal["synthesize"]
    out: str
    model: str
    data: Annotated[SourceSpec, SOURCES]
    prompt: str = "Write a short passage that answers this query.\n\nQuery: {query}\n\nPassage:"
    tokens: int = 128
    temperature: float = 0.7
    seed: int = 0
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "model")
        if reads(self.data) != "candidates":
            raise ValueError("data must be queries with candidates, as the source `candidates` reads them")
        if self.prompt.count(PLACE) != 1:
            raise ValueError(f"prompt must have the place {PLACE} once, got {self.prompt!r:.80}")
        if self.tokens < 1:
            raise ValueError(f"tokens must be >= 1, got {self.tokens}")
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature must be finite and >= 0, got {self.temperature}")
