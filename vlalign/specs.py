"""What a recipe says of components that are built, or asked now and then, beside the steps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vlalign.types import Item, Limits, Scorer, Source

Ints = NDArray[np.int64]
KNOWN_TEXTS = "known_texts"  # a field of rows of several texts: which there are besides the first, bool


class SourceSpec(Protocol):
    """The recipe's side of a Source."""

    def build(self, limits: Limits = Limits()) -> Source:
        """Index the data; raises DataError when there is nothing to read."""


class Sampler(Protocol):
    """In which order, and in whose company, rows come."""

    @property
    def by(self) -> str | None:
        """The field whose values are `labels` [rows]."""

    def bounds(self, labels: Ints, batch: int) -> Ints:
        """Where the steps of an epoch begin and end in its order, [steps + 1]; the same in every epoch.

        Raises RecipeError when there would be no step.
        """

    def order(self, labels: Ints, batch: int, random: np.random.Generator) -> Ints:
        """The rows of an epoch, those of a step side by side: [bounds[-1]], none of them twice."""

    def left_out(self, labels: Ints, batch: int) -> str:
        """What an epoch does not hold, or not as it was asked for, in words; empty when there is nothing."""


class ModelSpec(Protocol):
    """The recipe's side of a model."""

    def build(self) -> Any:
        """The nn.Module, weights loaded, on the CPU."""


class OptimizerSpec(Protocol):
    """The recipe's side of an optimizer. `clip` is the largest gradient norm, 0 for none."""

    lr: float
    clip: float

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """Over parameters that require a gradient, decay left out where it has no place."""


class ScheduleSpec(Protocol):
    """The recipe's side of a schedule: step -> multiple of the base rate."""

    def build(self, steps: int) -> Callable[[int], float]:
        """A pure function of the step, so that resuming needs no state."""


class Frozen(Protocol):
    """Every row of the training data before the first step, as a frozen encoder sees it."""

    def __len__(self) -> int:
        """Rows."""

    def features(self, side: Literal["image", "text"], model: str | None = None) -> Tensor:
        """Unit rows [N, D], float32: of the run's own locked tower, or of a saved model (folder or Hub id).

        Of several captions, the mean, made unit again. Raises RecipeError.
        """

    def field(self, name: str) -> Tensor:
        """Int64 [N], equal where the strings are; an earlier annotation as it is. Raises RecipeError."""

    def strings(self, name: str) -> list[str | None]:
        """What `field` compares, as it was written; None of a row that cannot be read. Raises RecipeError."""


class Annotator(Protocol):
    """A field of every row, made once before the first step. `vectors`: whether of an encoder's width."""

    def __call__(self, rows: Frozen) -> Tensor:
        """[N], int64 for labels, or float32 [N, *]."""


@dataclass(frozen=True, kw_only=True)
class LayerPass:
    """One layer of a frozen language model over one text of T tokens.

    `ids` [T]. `counts` [T]: how often each token stands in all texts that are read. `before`, `after` [T, D]:
    hidden states. `attention` [heads, T, T] of who attends (rows) to whom, None unless it is asked for.
    """

    ids: Tensor
    counts: Tensor
    before: Tensor
    after: Tensor
    attention: Tensor | None = None


class Importance(Protocol):
    """How much each token of a text matters. One that reads `attention` says `attends = True`."""

    def __call__(self, seen: LayerPass) -> Tensor:
        """Scores [T], of which only the order and the relative distances count."""


class Embedder(Scorer, Protocol):
    """A Scorer whose score is the cosine of two embeddings: what `vlalign.load` returns."""

    def encode_image(self, images: Iterable[Any]) -> Tensor:
        """PIL images or paths -> unit rows [N, D], float32 on the CPU."""

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The same of strings."""


class Judge(Protocol):
    """Who measures how well candidates answer a query, each by itself, or with `lists` all of them together.

    `digest`: another one wherever a measurement may be another, for those that are kept. `width`: how many
    numbers are measured of a pair. With `shows`, `measure` takes labelled pairs to be `shown`; with `refers`,
    a right answer of the query.
    """

    digest: str
    width: int

    def measure(self, query: Item, candidates: Sequence[Item]) -> Iterator[Mapping[int, Sequence[float]]]:
        """Numbers [width] by the candidate's place, each yield what is new. Raises UserError."""


class JudgeSpec(Protocol):
    """The recipe's side of a judge."""

    def build(self) -> Judge:
        """Found; weights are loaded when it is first asked. Raises UserError."""


class Reference(Protocol):
    """What a frozen model says of captions alone. `digest`: another one wherever a number may be."""

    digest: str

    def __call__(self, captions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Captions as tokens -> a number of each token, [tokens] float32 on the CPU."""


class ReferenceSpec(Protocol):
    """The recipe's side of a reference. `gives`: what weighters call its number of a token."""

    gives: str

    def build(self, process: Any, source: Source, device: torch.device) -> Reference:
        """Weights loaded. `process`: what makes tokens of captions, `source`: these. Raises UserError."""


@dataclass(frozen=True, kw_only=True)
class EvalRow:
    """One line of `metrics.json`. `exhibits` are JSON values for the report: a gallery, a spectrum."""

    dataset: str
    task: str
    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    exhibits: Mapping[str, Any] = field(default_factory=dict)


class Evaluator(Protocol):
    """Numbers for people. `every` is in steps; 0: at the end only."""

    every: int

    def __call__(self, model: Embedder, limits: Limits) -> list[EvalRow]:
        """Measure a model."""
