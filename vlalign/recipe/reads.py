"""What the steps of a recipe are made of, on which its parts must agree."""

from typing import Any

from vlalign.recipe.augmentation import Augment
from vlalign.registry import name_of

PAIRS = "pairs"  # what a component reads that says nothing
ANY = "anything"  # what goes with every task


def reads(component: Any) -> str:
    """`pairs` of a picture and a text, or queries with `candidates`."""
    found: str = getattr(component, "reads", PAIRS)
    return found


def check_reads(recipe: Any) -> None:
    """Raises ValueError where the model, the data or an evaluator is for other rows than the task."""
    task, data = recipe.task, recipe.data
    parts = {"model": recipe.model, "data.train": data.train}
    parts |= {f"evals.{index}": each for index, each in enumerate(recipe.evals)}
    whose = f"the task {name_of(type(task))} reads {reads(task)}"
    for place, part in parts.items():
        if reads(part) not in (ANY, reads(task)):
            raise ValueError(f"{place}: {name_of(type(part))} is for {reads(part)}, and {whose}")
    given = {
        "data.augment": data.augment != Augment(),
        "data.calibrate": data.calibrate is not None,
        "data.annotate": bool(data.annotate),
        "data.sampler.by": data.sampler.by is not None,
        "compile": recipe.compile,
    }
    if reads(task) != PAIRS and (named := next((place for place, given in given.items() if given), None)):
        raise ValueError(f"{named} is for pairs, and {whose}")
