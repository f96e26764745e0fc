"""What each verb's recipe may say, training's here. Components come by name from registries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from vlalign.recipe.augmentation import Augment as Augment
from vlalign.recipe.augmentation import Calibrate
from vlalign.recipe.directing import DirectionRecipe
from vlalign.recipe.judging import JudgeRecipe
from vlalign.recipe.mining import MineRecipe
from vlalign.recipe.naming import NameRecipe
from vlalign.recipe.offline import EvalRecipe, PushRecipe, RerankRecipe, SoupRecipe, named
from vlalign.recipe.pipelining import Comparison as Comparison
from vlalign.recipe.pipelining import PipelineRecipe as PipelineRecipe
from vlalign.recipe.quantization import QuantizeRecipe
from vlalign.recipe.reads import check_reads
from vlalign.recipe.synthesis import SynthesizeRecipe
from vlalign.recipe.teaching import Teacher
from vlalign.recipe.triplets import TripletsRecipe
from vlalign.registry import (
    ANNOTATORS,
    EVALUATORS,
    MODELS,
    OPTIMIZERS,
    REFERENCES,
    SAMPLERS,
    SCHEDULES,
    SOURCES,
    TASKS,
)
from vlalign.specs import (
    Annotator,
    Evaluator,
    ModelSpec,
    OptimizerSpec,
    ReferenceSpec,
    Sampler,
    ScheduleSpec,
    SourceSpec,
)
from vlalign.types import Limits, Task


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Rows to learn from. `batch` is global; `chunk`: rows of one forward (default: all of this process).

    `annotate`: fields that are computed for every row before the first step, by name, in the order written.
    `sampler`: in which order, and in whose company, rows come. `calibrate`: virtual pictures for rare rows.
    `teacher`: scores candidates as they are drawn. `reference`: tells weighters of tokens how likely each
    token of a caption is without its picture.
    """

    train: Annotated[SourceSpec, SOURCES]
    batch: int
    chunk: int | None = None
    workers: int = 0
    on_error: Literal["skip", "raise"] = "skip"
    limits: Limits = Limits()
    augment: Augment = Augment()
    calibrate: Calibrate | None = None
    annotate: Mapping[str, Annotated[Annotator, ANNOTATORS]] = field(default_factory=dict)
    sampler: Annotated[Sampler, SAMPLERS] = field(default_factory=lambda: SAMPLERS.decode("random"))
    teacher: Teacher | None = None
    reference: Annotated[ReferenceSpec, REFERENCES] | None = None

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
    nothing is augmented, and what a reference says of captions. `compile`: the model's forward while
    training, by torch.compile.
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
        named(self, "out")
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be >= 0 and below 2**63, got {self.seed}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema must be between 0 and 1, got {self.ema}")
        check_reads(self)
        if self.ema is None and getattr(self.task, "momentum", False):
            raise ValueError(
                "ema is not set, and the task compares with averaged weights; set it, as to 0.99"
            )
        if self.data.augment.teacher != "same" and not getattr(self.task, "momentum", False):
            raise ValueError(
                "data.augment.teacher: nothing in the task compares with averaged weights; leave it out"
            )


VERBS = {
    "train": TrainRecipe,
    "eval": EvalRecipe,
    "soup": SoupRecipe,
    "push": PushRecipe,
    "rerank": RerankRecipe,
    "mine": MineRecipe,
    "judge": JudgeRecipe,
    "synthesize": SynthesizeRecipe,
    "triplets": TripletsRecipe,
    "name": NameRecipe,
    "direction": DirectionRecipe,
    "pipeline": PipelineRecipe,
    "quantize": QuantizeRecipe,
}
