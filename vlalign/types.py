"""The nouns and protocols that rooms share. Shapes: Q queries, K keys of the table, D width, N any count.

Rooms never import each other's classes: they meet here, and by name in `vlalign.registry`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

# One row: {"image": PIL image, "captions": tuple[str, ...], "id": str, other fields: str}
Sample = Mapping[str, Any]
# Collated pairs {"query": inputs, "key": inputs} or groups {"pairs": inputs, "group": [P]}, with "ids",
# "query_fields" [Q, *] and "key_fields" [K or P, *]; or captions {"pairs": inputs}, with "ids"
Batch = Mapping[str, Any]
Inputs = Mapping[str, Tensor]  # of one tower: {"pixels"} | {"input_ids", "attention_mask"} | {"features"}
Side = Literal["query", "key"]  # direction of a table: each query over its keys, each key over its queries


class UserError(ValueError):
    """What the user can put right. The message says what is wrong, what was found and what to do."""


class RecipeError(UserError):
    """A recipe that cannot run. The message lists every mistake, one line each."""


class DataError(UserError):
    """Data that cannot be used at all: the set is missing, a column is missing, nothing is left."""


class BadRow(UserError):
    """One row that cannot be used. `reason` is a slug, the key of the counts, such as `truncated`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str]]:
        return BadRow, (self.reason, str(self))  # both, so that it crosses from a loader worker whole


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused before it is decoded. `bytes`: encoded size of a file; `pixels`: width times height.

    `draft`: large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, no side below this many pixels. Faster,
    and not the same pixels as a whole picture made smaller. None: every picture whole.
    """

    bytes: int = 64 * 2**20
    pixels: int = 50_000_000
    draft: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Licence:
    """Where a data set or a set of weights comes from, told to the user, the report and the model card."""

    name: str
    licence: str
    source: str


@dataclass(frozen=True)  # no slots: DeepSpeed's ZeRO-3 looks for tensors in `vars` of what a module returns
class Embeddings:
    """The forward of an encoder of pairs."""

    query: Tensor  # [Q, D] unit rows
    key: Tensor  # [Nk, D] unit rows, each query's own at its place; or `Task.texts` of each
    scale: Tensor  # [1] multiplies cosines
    bias: Tensor  # [1] added to logits
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # what a method's own head gave, by name

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Join the rows of chunks; scale, bias and extras do not depend on rows, the first's are kept."""
        query, key = (torch.cat([getattr(part, side) for part in parts]) for side in ("query", "key"))
        return replace(parts[0], query=query, key=key)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, extras as `extras.NAME`."""
        named = {name: getattr(self, name) for name in ("query", "key", "scale", "bias")}
        return named | {f"extras.{name}": tensor for name, tensor in self.extras.items()}


@dataclass(frozen=True)
class PairScores:
    """The forward of a reranker: what it answers about each pair of a query and a candidate, float32."""

    scores: Tensor  # [P] logit(yes) - logit(no)
    yes: Tensor  # [P] the logits themselves; of a model with one output `scores` and 0
    no: Tensor  # [P]
    total: Tensor | None = None  # [P] log-sum-exp over the whole vocabulary, for who asks
    numbers: Tensor | None = None  # [P] logit of a candidate's number in a list of its query's
    ratings: Tensor | None = None  # [P, 2, 10] logits of digits, beside a right answer and alone

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {name: x for name, x in vars(self).items() if x is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Answers laid out by query, for objectives that tell yes and no apart."""

    yes: Tensor  # [Q, C]
    no: Tensor  # [Q, C]
    total: Tensor | None  # [Q, C]
    target: Tensor  # [Q, C] relevance, bool or float
    mask: Tensor  # [Q, C] bool: there is such a candidate
    ratings: Tensor | None = None  # [Q, C, 2, 10]


@dataclass(frozen=True)
class TokenLogits:
    """The forward of a model that writes, at supervised positions alone."""

    logits: Tensor  # [N, V]
    labels: Tensor  # [N] the tokens that stand there
    row: Tensor  # [N] which row of the batch they are of


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What is ranked, or what is ranked for: a text, pictures (PIL images or paths), or both."""

    text: str = ""
    images: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Loss:
    """A task's answer. `total`: the sum over this process's rows; `parts`: detached sums to log, by name."""

    total: Tensor  # []
    parts: Mapping[str, Tensor]


class Rows(Mapping[str, Tensor]):
    """What an objective sees of one direction of a table: its named reductions, each [Q]."""

    valid: Tensor  # [Q] bool; False: nothing to learn from this row

    @abstractmethod
    def dense(self) -> Any:
        """Logits, cosines, targets and mask as [Q, K] tensors, for objectives that sort or rank."""

    @abstractmethod
    def everyones(self, x: Tensor) -> Tensor:
        """`x` [Q] of every rank, differentiable, for what is normalised over the batch."""


@dataclass(frozen=True, slots=True)
class Context:
    """What weighters and embedding objectives may look at besides losses."""

    batch: Batch
    rows: Rows | None
    step: int  # the first is 1
    total_steps: int
    # Of this process's rows, for embedding objectives of every process's; extras are the component's own
    features: Embeddings | None = None

    def generator(self) -> torch.Generator:
        """Random numbers of this step, on the CPU: the same in every process, in runs of any seed too."""
        return torch.Generator().manual_seed(self.step)


class Objective(Protocol):
    """How wrong each row is. `reductions` names what it asks of its row (`vlalign.ops.reductions`).

    One with the same total over queries and over keys says `symmetric = True`: its rows cannot be weighed.
    One that compares rows of the batch, or a weighter that does, says `coupled = True`.
    """

    reductions: Mapping[str, Any]

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q], unreduced."""


class AnswerObjective(Protocol):
    """How wrong answers are. It may have `notes(answers)`, [Q] to log; `vocabulary`: it reads `total`."""

    def __call__(self, answers: Answers) -> Tensor:
        """Losses [Q], unreduced."""


class TokenObjective(Protocol):
    """How wrong each token is."""

    def __call__(self, features: TokenLogits) -> Tensor:
        """Losses [N], unreduced."""


class EmbeddingObjective(Protocol):
    """How wrong the embeddings themselves are: companions of a contrast, regularisers.

    `head(dim)` makes the module that it learns, whose parameters come back as `features.extras`, by name.
    `fields`: what it reads of rows. `momentum`: it wants `batch["momentum"]`, rows as averaged weights embed
    them. `makes`: fields that `make(features)` gives selectors to read, by side, each from its row alone.
    """

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N] of the rows that it is shown: those of every process; that of a batch to each row."""


class Weighter(Protocol):
    """How much each loss counts: same shape as the losses, >= 0.

    `reads`, where it has one: reductions that the objective must name, of a tuple of them one. One that
    learns has a `head(dim)`, and `lesson(losses, context)`: losses [Q] that teach it, or `rates(losses,
    context)`: weights before their mean is one, which `vlalign.train.meta` teaches.
    """

    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [Q]."""


class Targets(Protocol):
    """How relevant a key is to a query, a function of a tile: never a whole [Q, K] tensor.

    Those that never leave a negative say `all_positive = True`; those about a query's own candidates `own`.
    """

    query_fields: tuple[str, ...]
    key_fields: tuple[str, ...]

    def tile(self, query: Mapping[str, Tensor], key: Mapping[str, Tensor]) -> Tensor:
        """Fields [q, 1, *] and [1, k, *] -> relevance [q, k], bool or float >= 0."""


class Selector(Protocol):
    """Which pairs count, or how much: weights from 0 to 1. `reductions` are of its row, often none."""

    fields: tuple[str, ...]  # what it reads of rows and of columns
    reductions: Mapping[str, Any]

    def tile(self, row: Any, column: Any, cosine: Tensor, targets: Tensor, **reductions: Tensor) -> Tensor:
        """Bool, or float without a gradient, [q, k]."""


class Mixer(Protocol):
    """Synthetic hard negatives, appended to a row's own. `hardest`: how many of its negatives it is shown."""

    hardest: int

    def __call__(self, query: Tensor, hardest: Tensor, context: Context) -> Tensor:
        """Rows [Q, D] and their hardest negatives [Q, H, D], all unit -> unit [Q, M, D], differentiable."""


class Source(Protocol):
    """A map-style data set, so that order and resume are arithmetic."""

    licences: Sequence[Licence]
    skipped: Mapping[str, Sequence[str]]  # reason -> ids of rows dropped while indexing

    def __len__(self) -> int:
        """Rows that indexing kept."""

    def __getitem__(self, index: int) -> Sample:
        """One decoded row; raises BadRow."""

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption of a row; nothing is decoded."""

    def fields(self, index: int) -> dict[str, str]:
        """`id` and the other string fields of a row; nothing is decoded."""


class Scorer(Protocol):
    """Whoever gives a number to a (query, candidate) pair."""

    def score(self, queries: Sequence[Any], candidates: Sequence[Sequence[Any]]) -> list[Tensor]:
        """Scores [C_q] a query."""


class Task(Protocol):
    """Features and a batch -> a loss. `coupled`: rows of a step depend on each other: cache chunks.

    It may have `heads(dim)`, what methods learn; `rescalers`, `weighings` of what learns from tried steps;
    `momentum`: it sees averaged weights; `texts` of a row; `reads_fields`, `reads_scale`, `least_rows`.
    """

    coupled: bool

    def rows(self, batch: Batch) -> int:
        """Rows that the loss is divided by, known before the forward."""

    def loss(self, features: Any, batch: Batch, step: int, total: int) -> Loss:
        """Sum over local rows."""
