"""The model that a recipe starts from, and what is refused before it is built."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vlalign.data.keyed import kinds
from vlalign.models.pair import SIDES
from vlalign.models.weights import initialise
from vlalign.recipe.reads import PAIRS, reads
from vlalign.recipe.schemas import TrainRecipe
from vlalign.specs import KNOWN_TEXTS
from vlalign.train.features import kept
from vlalign.types import RecipeError, Source

GIVEN = ("row", "caption")  # fields of every row
KEYED = ("row", "document", "query")  # and of queries and candidates


def check_fields(recipe: TrainRecipe, source: Source) -> None:
    """Raises RecipeError when something reads a field that the rows do not have."""
    if reads(recipe.task) != PAIRS:
        return check_numbers(recipe, source)
    if reads(recipe.data.train) != PAIRS:
        return check_keys(recipe, source)
    own, data = source.fields(0), recipe.data
    given = (*GIVEN, KNOWN_TEXTS) if getattr(recipe.task, "texts", 1) > 1 else GIVEN
    for name in data.annotate:
        if name in (*given, *own):
            raise RecipeError(
                f"data.annotate.{name}: rows have a field '{name}' already; choose another name"
            )
    have = [*GIVEN, *own, *data.annotate]
    for name in getattr(recipe.task, "reads_fields", ()):
        if name not in have:
            raise RecipeError(
                f"task: it reads the field '{name}', and the rows of data.train have "
                f"{', '.join(have)}; set data.train.{name} to the column that holds it, or "
                f"data.annotate.{name} to what computes it"
            )
    rare = data.calibrate and data.calibrate.field
    for place, field in (("data.sampler.by", data.sampler.by), ("data.calibrate.field", rare)):
        if field not in (None, *own, *data.annotate):
            raise RecipeError(
                f"{place}: the rows have no field '{field}', but {', '.join([*own, *data.annotate])}; set "
                f"data.annotate.{field} to what computes it"
            )


def check_numbers(recipe: TrainRecipe, source: Any) -> None:
    """Raises RecipeError when the task reads a number that the candidates do not have; pairs have none."""
    have = with_teacher(recipe, getattr(source, "numbers", ()), getattr(recipe.task, "reads_numbers", ()))
    for name in getattr(recipe.task, "reads_numbers", ()):
        if name not in have:
            raise RecipeError(
                f"task: it reads the number '{name}' of candidates, and not every candidate of data.train "
                f"has it; all have {', '.join(have)}"
            )


def check_keys(recipe: TrainRecipe, source: Any) -> None:
    """The same of queries and candidates for a dual encoder."""
    if taken := set(KEYED) & set(source.numbers):
        raise RecipeError(f"data.train: no number of candidates may be called '{min(taken)}'; rename it")
    have = with_teacher(recipe, [*KEYED, *source.numbers], getattr(recipe.task, "reads_fields", ()))
    if missing := [name for name in getattr(recipe.task, "reads_fields", ()) if name not in have]:
        raise RecipeError(
            f"task: it reads the field '{missing[0]}', and queries and candidates have {', '.join(have)}"
        )
    if getattr(recipe.task, "embedding_terms", ()):
        raise RecipeError("task.embedding_terms: they are for pairs, and data.train holds candidates")


def with_teacher(recipe: TrainRecipe, have: Sequence[str], read: Sequence[str]) -> list[str]:
    """The names of what candidates have, and of what a teacher gives them.

    Raises RecipeError where that is there already, or where nothing in the task reads it.
    """
    teacher = recipe.data.teacher
    if teacher is None:
        return [*have]
    if teacher.number in have:
        raise RecipeError(
            f"data.teacher.number: the candidates of data.train have '{teacher.number}' already; choose "
            "another name, or leave the teacher out to learn from what they have"
        )
    if teacher.number not in read:
        raise RecipeError(
            f"data.teacher: nothing in the task reads '{teacher.number}'; set the targets of a term to "
            f"{{name: given, field: {teacher.number}}}, or leave the teacher out"
        )
    return [*have, teacher.number]


def check_dtypes(model: Any, deepspeed: bool) -> None:
    """Raises RecipeError for weights that would learn in bfloat16 without a copy in float32."""
    rounded = [name for name, x in model.named_parameters() if x.requires_grad and x.dtype == torch.bfloat16]
    if rounded and not deepspeed:
        raise RecipeError(
            f"model.dtype: {len(rounded)} of the weights that learn are bfloat16, such as {rounded[0]}, and "
            "most small steps would be rounded away; use dtype: float32 with precision: bf16, lora, or a "
            "launch file of DeepSpeed, which keeps a copy"
        )


def build(recipe: TrainRecipe) -> Any:
    """Built, its weights loaded from `init`, in training mode. Raises RecipeError when it cannot learn."""
    model = recipe.model.build()
    if recipe.init is not None:
        initialise(model, recipe.init)
    widest = max((width.dim for width in getattr(recipe.task, "matryoshka", ())), default=0)
    if widest and widest > model.dim:
        raise RecipeError(f"task.matryoshka: a width of {widest}, and the embeddings have {model.dim}")
    if heads := getattr(recipe.task, "heads", None):
        model.learn_for(heads(model.dim))
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing()
    if getattr(recipe.task, "reads_vocabulary", False):
        model.vocabulary = True
    for name, reads_it, term in (
        ("lists", "reads_lists", "a term of the task with `of: numbers`"),
        ("reference", "reads_ratings", "an objective of ratings, such as self_judge,"),
    ):
        if (getattr(recipe.model, name, None) is not None) != getattr(recipe.task, reads_it, False):
            raise RecipeError(
                f"model.{name} and {term} go together, and here is one without the other; set "
                "both, or neither"
            )
    if (
        hasattr(model, "scale")
        and model.scale.requires_grad
        and not getattr(recipe.task, "reads_scale", True)
    ):
        raise RecipeError(
            "model.scale: it would learn, but no term of the task reads it; use scale: {learn: false}"
        )
    if recipe.data.calibrate is not None and not kept(recipe, model, "image"):
        raise RecipeError(
            "data.calibrate: it draws features of pictures as a locked tower gives them, and none are kept; "
            "set model.image.lock: true and feature_cache: true, and no data.augment of pictures"
        )
    if recipe.compile:
        compile_forward(model)
    return model.train()


def leave_out(recipe: TrainRecipe, model: Any, source: Any) -> None:
    """Let the side of a dual encoder rest that reads no query and no candidate: DDP would wait for it."""
    if reads(recipe.task) == PAIRS != reads(recipe.data.train):
        for side in {*SIDES} - {*kinds(source)}:
            model.rest(side)


def compile_forward(model: nn.Module) -> None:
    """In place, so that weights keep their names; with eager's random numbers, so that chunks replay alike.

    A size that changes, as the length of texts does, is compiled for twice. Raises RecipeError.
    """
    from torch._dynamo.exc import BackendCompilerFailed

    try:  # of something small: the model itself is compiled by the first step
        torch.compile(torch.neg, options={"fx_graph_cache": False})(torch.zeros(1))
    except BackendCompilerFailed as error:
        raise RecipeError(
            f"compile: torch.compile fails on this machine ({str(error).splitlines()[0]}); on a CPU it needs "
            "a C++ compiler, such as g++: install one, or use compile=false"
        ) from error
    model.compile(options={"fallback_random": True})
