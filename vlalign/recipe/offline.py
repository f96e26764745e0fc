"""What the recipes of the verbs may say that follow training."""

from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

from vlalign.recipe.reads import reads
from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import Evaluator, SourceSpec
from vlalign.types import Limits

TAKEN = ("id", "label", "text", "image", "images")  # what a candidate has beside its numbers


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """`vlalign eval`: writes `out/{recipe.yaml, metrics.json, report.html}`. `model`: folder or Hub id.

    Of several models, the joined embedding is measured (`vlalign.models.ensemble`).
    `feature_cache`: keep what the towers give on disk, so that the same weights are quick to measure again.
    """

    verb: Literal["eval"]
    out: str
    model: str | tuple[str, ...]
    evals: tuple[Annotated[Evaluator, EVALUATORS], ...]
    limits: Limits = Limits()
    feature_cache: bool = True

    def __post_init__(self) -> None:
        named(self, "out", "model")
        if not self.evals:
            raise ValueError("evals is empty; name at least one evaluator")


@dataclass(frozen=True, kw_only=True)
class SoupRecipe:
    """`vlalign soup`: the mean of `models`, folders or Hub ids; writes `out/{recipe.yaml, model/}`.

    `alpha`: how much of the second of two models, the rest is the first's. `greedy`: a metric of the first of
    `evals`: a model stays in the mean where it does not make that metric worse; `-` before it: less is
    better. `evals` measure the mean, and add `out/{metrics.json, report.html}`.
    """

    verb: Literal["soup"]
    out: str
    models: tuple[str, ...]
    alpha: float | None = None
    greedy: str | None = None
    evals: tuple[Annotated[Evaluator, EVALUATORS], ...] = ()
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "models")
        if len(self.models) < 2:
            raise ValueError(f"models must be at least two, got {list(self.models)}")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be between 0 and 1, got {self.alpha}")
        if self.alpha is not None and (self.greedy is not None or len(self.models) > 2):
            raise ValueError("alpha must be left out of a greedy mean, and of one of more than two models")
        if self.greedy is not None and not self.evals:
            raise ValueError("evals is empty; name the evaluator whose metric chooses what is kept")


@dataclass(frozen=True, kw_only=True)
class PushRecipe:
    """`vlalign push`: uploads `model` (the folder of a finished run, or a model folder) to `repo`.

    `licence`: of the weights, as the Hub spells it: `apache-2.0`, `mit`, `cc-by-4.0`, ... `adapter`: of a
    reranker with LoRA only what was learned; who loads it gets the base from the Hub, as it was then.
    """

    verb: Literal["push"]
    model: str
    repo: str
    private: bool = True
    licence: str = "other"
    message: str = "Upload with vlalign"
    adapter: bool = False

    def __post_init__(self) -> None:
        named(self, "model", "repo")


@dataclass(frozen=True, kw_only=True)
class RerankRecipe:
    """`vlalign rerank`: writes `out/{recipe.yaml, run.trec, candidates.jsonl}`. `model`: folder or Hub id.

    `data`: queries with candidates. `number`: what the model's score is called in `candidates.jsonl`.
    `first_stage`: a number of candidates that `weight` times the model's score is added to in `run.trec`.
    `tokens`: at most so many in a forward. Killed and run again, or by several processes, it scores each row
    once.
    """

    verb: Literal["rerank"]
    out: str
    model: str
    data: Annotated[SourceSpec, SOURCES]
    number: str = "rerank_score"
    first_stage: str | None = None
    weight: float = 1.0
    tokens: int = 16_384
    tag: str = "vlalign"
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        named(self, "out", "model", "number", "tag")
        if reads(self.data) != "candidates":
            raise ValueError("data must be queries with candidates, as the source `candidates` reads them")
        if self.tokens < 1:
            raise ValueError(f"tokens must be >= 1, got {self.tokens}")
        if not isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")
        check_written(self.number, self.tag)


def check_written(number: str, tag: str) -> None:
    """Raises ValueError for the name of a candidate's number that is taken, and for the tag of no run."""
    if number in TAKEN:
        raise ValueError(f"number must not be one of {', '.join(TAKEN)}, got '{number}'")
    if tag.split() != [tag]:
        raise ValueError(f"tag must be one word, got '{tag}'")


def named(recipe: object, *fields: str) -> None:
    """An empty name, as an unset shell variable gives, would mean the current folder."""
    for name in fields:
        value = getattr(recipe, name)
        names = [value] if isinstance(value, str) else value
        if not names or not all(each.strip() for each in names):
            raise ValueError(f"{name} must not be empty")
