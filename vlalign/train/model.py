"""The model that a recipe starts from, and what is refused before it is built."""

from typing import Any

import torch
from torch import nn

from vlalign.models.weights import initialise
from vlalign.recipe.schemas import TrainRecipe
from vlalign.types import RecipeError, Source

GIVEN = ("row", "caption")  # fields of every row


def check_fields(recipe: TrainRecipe, source: Source) -> None:
    """Raises RecipeError when the task compares a field that the rows do not have."""
    have = [*GIVEN, *source.fields(0)]
    for name in getattr(recipe.task, "reads_fields", ()):
        if name not in have:
            raise RecipeError(
                f"task.targets: they compare the field '{name}', and the rows of data.train have "
                f"{', '.join(have)}; set data.train.{name} to the column that holds it"
            )


def build(recipe: TrainRecipe) -> Any:
    """Built, its weights loaded from `init`, in training mode. Raises RecipeError when it cannot learn."""
    model = recipe.model.build()
    if recipe.init is not None:
        initialise(model, recipe.init)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing()
    if model.scale.requires_grad and not getattr(recipe.task, "reads_scale", True):
        raise RecipeError(
            "model.scale: it would learn, but no term of the task reads it; use scale: {learn: false}"
        )
    if recipe.compile:
        compile_forward(model)
    return model.train()


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
