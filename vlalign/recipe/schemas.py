"""What each verb's recipe may say. Components come by name from registries; the rest is written here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from vlalign.registry import EVALUATORS, MODELS, OPTIMIZERS, SCHEDULES, SOURCES, TASKS
from vlalign.types import (
    Evaluator,
    Limits,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    SourceSpec,
    Task,
)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """What is done to a training image. `scale`: area of the random crop; `flip`: mirror half of them."""

    scale: tuple[float, float] = (1.0, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be 0 < low <= high <= 1, got {list(self.scale)}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be 0 < low <= high, got {list(self.ratio)}")

    @property
    def identity(self) -> bool:
        """Whether it changes nothing, so that a locked tower's features may be cached."""
        return self.scale == (1.0, 1.0) and not self.flip


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Rows to learn from. `batch` is global; `chunk`: rows of one forward (default: all of this process)."""

    train: Annotated[SourceSpec, SOURCES]
    batch: int
    chunk: int | None = None
    workers: int = 0
    on_error: Literal["skip", "raise"] = "skip"
    limits: Limits = Limits()
    augment: Augment = Augment()

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be >= 1, got {self.batch}")
        if self.chunk is not None and not 1 <= self.chunk <= self.batch:
            raise ValueError(f"chunk must be between 1 and batch ({self.batch}), got {self.chunk}")
        if self.workers < 0:
            raise ValueError(f"workers must be >= 0, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Log:
    """`every`: steps between lines of `log.jsonl`; `trackers`: accelerate's, besides the file and the bar."""

    every: int = 20
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every must be >= 1, got {self.every}")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """`every`: steps between checkpoints; `keep`: how many of the newest stay."""

    every: int = 1000
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """`vlalign train`: writes `out/{recipe.yaml, log.jsonl, step_*/, metrics.json, report.html, model/}`.

    `init`: a saved model's folder or Hub id to start from. `ema`: decay of averaged weights, which are then
    the ones that are evaluated and saved. `feature_cache`: keep locked towers' features on disk, where
    nothing is augmented. `compile`: the model's forward while training, by torch.compile.
    """

    verb: Literal["train"]
    out: str
    model: Annotated[ModelSpec, MODELS]
    data: TrainData
    task: Annotated[Task, TASKS]
    steps: int
    optim: Annotated[OptimizerSpec, OPTIMIZERS]
    schedule: Annotated[ScheduleSpec, SCHEDULES]
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    init: str | None = None
    ema: float | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    feature_cache: bool = True
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    evals: tuple[Annotated[Evaluator, EVALUATORS], ...] = ()

    def __post_init__(self) -> None:
        _named(self, "out")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be >= 0 and below 2**63, got {self.seed}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}")


@dataclass(frozen=True, kw_only=True)
class EvalRecipe:
    """`vlalign eval`: writes `out/{recipe.yaml, metrics.json, report.html}`. `model`: folder or Hub id.

    `feature_cache`: keep what the towers give on disk, so that the same weights are quick to measure again.
    """

    verb: Literal["eval"]
    out: str
    model: str
    evals: tuple[Annotated[Evaluator, EVALUATORS], ...]
    limits: Limits = Limits()
    feature_cache: bool = True

    def __post_init__(self) -> None:
        _named(self, "out", "model")
        if not self.evals:
            raise ValueError("evals is empty; name at least one evaluator")


@dataclass(frozen=True, kw_only=True)
class PushRecipe:
    """`vlalign push`: uploads `model` (the folder of a finished run, or a model folder) to `repo`.

    `licence`: of the weights, as the Hub spells it: `apache-2.0`, `mit`, `cc-by-4.0`, ...
    """

    verb: Literal["push"]
    model: str
    repo: str
    private: bool = True
    licence: str = "other"
    message: str = "Upload with vlalign"

    def __post_init__(self) -> None:
        _named(self, "model", "repo")


def _named(recipe: object, *fields: str) -> None:
    """An empty name, as an unset shell variable gives, would mean the current folder."""
    for name in fields:
        if not getattr(recipe, name).strip():
            raise ValueError(f"{name} must not be empty")


VERBS = {"train": TrainRecipe, "eval": EvalRecipe, "push": PushRecipe}
