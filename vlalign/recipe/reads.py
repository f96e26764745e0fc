"""What the steps of a recipe are made of, on which its parts must agree."""

from typing import Any

from vlalign.recipe.augmentation import Augment
from vlalign.registry import name_of

PAIRS = "pairs"  # what a component reads that says nothing
ANY = "anything"  # what goes with every task
Kinds = tuple[str, ...]
# What a task's rows are made of, and what its model may be asked, if not of its own kind alone.
GIVES: dict[str, Kinds] = {"captions": (PAIRS,), PAIRS: (PAIRS, "candidates")}
ASKS: dict[str, Kinds] = {"captions": ("captions", "candidates"), PAIRS: (PAIRS, "candidates")}


def reads(component: Any) -> str:
    """`pairs` of a picture and a text, queries with `candidates`, or `captions` to be written."""
    found: str = getattr(component, "reads", PAIRS)
    return found


def check_reads(recipe: Any) -> None:
    """Raises ValueError where the model, the data or an evaluator is for other rows than the task.

    And where the task reads a number of tokens that nothing gives, or nothing in it reads what is given.
    """
    task, data = recipe.task, recipe.data
    kind = reads(task)
    rows, asked = GIVES.get(kind, (kind,)), ASKS.get(kind, (kind,))
    fits: list[tuple[str, Any, Kinds]] = [("model", recipe.model, (kind,)), ("data.train", data.train, rows)]
    fits += [(f"evals.{at}", each, asked) for at, each in enumerate(recipe.evals)]
    whose = f"the task {name_of(type(task))} reads {kind}"
    for place, part, fit in fits:
        if reads(part) not in (ANY, *fit):
            raise ValueError(f"{place}: {name_of(type(part))} is for {reads(part)}, and {whose}")
    given = {
        "data.augment": data.augment != Augment(),
        "data.calibrate": data.calibrate is not None,
        "data.annotate": bool(data.annotate),
        "data.sampler.by": data.sampler.by is not None,
        "compile": recipe.compile,
    }
    held = reads(data.train)
    if (kind, held) != (PAIRS, PAIRS) and (
        named := next((place for place, given in given.items() if given), None)
    ):
        raise ValueError(
            f"{named} is for pairs, and {whose if kind != PAIRS else f'data.train holds {held}'}"
        )
    if data.teacher is not None and held != "candidates":
        raise ValueError(
            f"data.teacher scores the candidates of queries, and data.train holds {held}; leave it out, or "
            "name a source of candidates"
        )
    if held != PAIRS and getattr(task, "texts", 1) > 1:
        raise ValueError(
            f"task.attributes are further captions of pictures, and data.train holds {held}; leave them out, "
            "or name a source of pairs"
        )
    if getattr(recipe.model, "one_text", False) and getattr(task, "texts", 1) > 1:
        raise ValueError(
            f"task.attributes: {name_of(type(recipe.model))} reads one text of a row; leave them out, or "
            "train a dual_encoder"
        )
    known = () if data.reference is None else (data.reference.gives,)
    read = getattr(task, "reads_token_fields", ())
    if missing := [name for name in read if name not in known]:
        raise ValueError(
            f"task.token_terms: a weighter reads the number '{missing[0]}' of tokens, and nothing gives it; "
            "set data.reference: language_model and unigram give log_probability, token_importance importance"
        )
    if known and not read:
        raise ValueError(
            "data.reference: nothing in the task reads what it gives; name a weighter that does, such as "
            "prior, in a term's `weighters`, or leave it out"
        )
