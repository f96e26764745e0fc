"""What a run's steps are read from, by what its task reads: pairs, queries with candidates, or captions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlalign.data.candidates import Candidates
from vlalign.data.captions import Captions
from vlalign.data.chunks import Chunks, Pairs
from vlalign.data.images import opened
from vlalign.data.keyed import KeyedCandidates, Part, kinds, side_of
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.recipe.reads import reads
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.annotate import annotate
from vlalign.train.features import locked_features
from vlalign.train.features_of_candidates import locked_candidates
from vlalign.train.order import ordered
from vlalign.train.progress import Display
from vlalign.train.reference import ReferenceNumbers
from vlalign.train.runtime import Runtime
from vlalign.train.tally import Found
from vlalign.train.teacher import TeacherScores
from vlalign.train.together import together
from vlalign.types import RecipeError, Source


@dataclass(frozen=True)
class Feed:
    """`scorer`: what evaluators are given of the model; `found`: rows that could not be read, so far.

    `teacher`: what completes each chunk before it is learned from, if anything does.
    """

    chunks: Chunks
    scorer: Callable[[Any], Any]
    found: Found = field(default_factory=Found)
    teacher: TeacherScores | ReferenceNumbers | None = None


def feed(
    recipe: TrainRecipe, model: Any, source: Source, out: Path, runtime: Runtime, display: Display
) -> Feed:
    """Every process calls it. Raises UserError."""
    made = {"pairs": _pairs, "candidates": _candidates, "captions": _captions}[reads(recipe.task)]
    if made is _pairs and reads(recipe.data.train) == "candidates":
        made = _keyed
    return made(recipe, model, source, out, runtime, display)


def _pairs(
    recipe: TrainRecipe, model: Any, source: Source, out: Path, runtime: Runtime, display: Display
) -> Feed:
    """Features of locked towers first: those will not run any more. Then annotations."""
    locked = locked_features(recipe, model, source, runtime, display)
    frozen = annotate(recipe, source, locked, out, runtime, display)
    with together(runtime):
        order, virtual = frozen.order(), frozen.virtual()
    image, text = model.processors()
    chunks = Pairs(
        source=source,
        order=order,
        on_error=recipe.data.on_error,
        image_process=image,
        text_process=text,
        augment=recipe.data.augment,
        annotations=frozen.annotations,
        virtual=virtual,
        texts=getattr(recipe.task, "texts", 1),
        **locked.arguments,
    )
    caches = {} if runtime.deepspeed else locked.caches  # it may hold rounded weights
    return Feed(
        chunks, lambda live: DualEncoderEmbedder(live, caches=caches), Found(locked.bad, locked.converted)
    )


def _keyed(
    recipe: TrainRecipe, model: Any, source: Any, out: Path, runtime: Runtime, display: Display
) -> Feed:
    """Candidates for a dual encoder. Features of locked towers first: those will not run any more."""
    with together(runtime):
        order = ordered(recipe, len(source), None, display)
        sides = kinds(source, joint := getattr(model, "joint", False))
        if joint and sides[0] != "both":
            raise RecipeError(
                f"data.train: the model learns from queries that have a picture and a text, and the first is "
                f"one {sides[0]} alone; give both, or train a dual encoder"
            )
    locked = locked_candidates(recipe, model, source, sides, runtime, display)
    image, text = model.processors()
    processes: dict[Part, Any] = {"image": image, "text": text}
    query, key = (side_of(kind, processes, own) for kind, own in zip(sides, locked.features, strict=True))
    chunks = KeyedCandidates(
        source=source,
        order=order,
        on_error=recipe.data.on_error,
        query=query,
        key=key,
        limits=recipe.data.limits,
        known_bad=locked.known_bad,
        asks=recipe.data.teacher is not None,
    )
    caches = {} if runtime.deepspeed else locked.caches
    return Feed(
        chunks,
        lambda live: DualEncoderEmbedder(live, caches=caches, opening=opened),
        Found(locked.bad),
        _teacher(recipe, runtime),
    )


def _candidates(
    recipe: TrainRecipe, model: Any, source: Any, out: Path, runtime: Runtime, display: Display
) -> Feed:
    with together(runtime):
        order = ordered(recipe, len(source), None, display)
    chunks = Candidates(
        source=source,
        order=order,
        on_error=recipe.data.on_error,
        process=model.taught,
        limits=recipe.data.limits,
        asks=recipe.data.teacher is not None,
    )
    teacher = _teacher(recipe, runtime)
    return Feed(chunks, lambda live: RerankScorer(live, opening=opened), teacher=teacher)


def _teacher(recipe: TrainRecipe, runtime: Runtime) -> TeacherScores | None:
    data = recipe.data
    if data.teacher is None:
        return None
    with together(runtime):
        return TeacherScores(data.teacher, data.limits, runtime.device, runtime.rank)


def _captions(
    recipe: TrainRecipe, model: Any, source: Source, out: Path, runtime: Runtime, display: Display
) -> Feed:
    with together(runtime):
        order = ordered(recipe, len(source), None, display)
    chunks = Captions(source=source, order=order, on_error=recipe.data.on_error, process=model.process)
    reference = _reference(recipe, model, source, runtime)
    return Feed(chunks, lambda live: CaptionWriter(live, opening=opened), teacher=reference)


def _reference(recipe: TrainRecipe, model: Any, source: Source, runtime: Runtime) -> ReferenceNumbers | None:
    if recipe.data.reference is None:
        return None
    with together(runtime):
        reference = recipe.data.reference.build(model.process, source, runtime.device)
        gives = recipe.data.reference.gives
        return ReferenceNumbers(gives, reference, runtime.rank, recipe.feature_cache)
