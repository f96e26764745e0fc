"""Which rows each step of a run has, by its recipe."""

from vlalign.data.sampler import Order
from vlalign.recipe.schemas import TrainRecipe
from vlalign.specs import Ints
from vlalign.train.progress import Display
from vlalign.types import RecipeError


def ordered(recipe: TrainRecipe, rows: int, labels: Ints | None, display: Display) -> Order:
    """The rows of every step. Raises RecipeError when there can be none."""
    batch = recipe.data.batch
    made = Order(sampler=recipe.data.sampler, rows=rows, batch=batch, seed=recipe.seed, labels=labels)
    if told := made.left_out:
        display.say(told)
    if made.smallest < (least := getattr(recipe.task, "least_rows", 1)):
        raise RecipeError(
            f"data.batch: the smallest batch of an epoch has {made.smallest} rows, for the last two of "
            f"{batch} may be half as large, and the task's objectives need {least}"
        )
    return made
