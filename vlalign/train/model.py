"""The model that a recipe starts from."""

from typing import Any

from vlalign.models.weights import initialise
from vlalign.recipe.schemas import TrainRecipe
from vlalign.types import RecipeError


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
    return model.train()
