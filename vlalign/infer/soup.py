"""Average trained models as a recipe says, and measure the mean."""

import json
from collections.abc import Callable, Collection, Sequence
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vlalign import files
from vlalign.infer.evaluate import measure
from vlalign.infer.load import load_embedder
from vlalign.models.soup import gather, mix
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.offline import SoupRecipe
from vlalign.registry import name_of, suggestion
from vlalign.types import UserError

FILE = "soup.json"  # in the model's folder, so that it travels with it
UNMADE = ("models.*", "alpha", "greedy", "evals", "evals.*", "limits.*")  # free while there is no model yet


def soup(recipe: SoupRecipe) -> Path:
    """Write `out/{recipe.yaml, model/}`, and what its evaluators find of the mean; returns `out`.

    What is there stays. Raises RecipeError where `out` is another recipe's, UserError for models that have no
    mean, a metric that is not measured, and what the disk refuses.
    """
    model = Path(recipe.out) / "model"
    if model.exists() and not (model / FILE).is_file():
        raise UserError(f"out: {model} is there and is no soup; name another folder, or delete that one")
    out = claim(recipe, () if model.exists() else UNMADE)
    if not model.exists():
        with TemporaryDirectory(dir=out, prefix=".soup.") as scratch:
            _make(recipe, Path(scratch), model)
    if not finished(recipe):
        measure(load_embedder(model), recipe.evals, recipe.limits, out)
    return out


def finished(recipe: SoupRecipe) -> bool:
    """Whether the folder has all that a recipe asks for."""
    wanted = (f"model/{FILE}", *(("metrics.json", "report.html") if recipe.evals else ()))
    return all((Path(recipe.out) / name).exists() for name in wanted)


def read(out: Path) -> list[dict[str, Any]]:
    """What went into a finished soup: each `model`, its `weight`, and what a greedy choice saw of it."""
    told: list[dict[str, Any]] = json.loads((out / "model" / FILE).read_text(encoding="utf-8"))["models"]
    return told


def _make(recipe: SoupRecipe, scratch: Path, model: Path) -> None:
    """Write the model's folder, whole or not at all; `scratch` is a folder beside it."""
    count, new = len(recipe.models), scratch / "model"
    with writing(model.parent):
        folders = gather(recipe.models, scratch)

    def value(weights: Sequence[float]) -> float:
        with TemporaryDirectory(dir=scratch) as name:
            with writing(model.parent):
                mix(folders, weights, Path(name) / "model")
            return _metric(recipe, Path(name) / "model", weights)

    seen: Sequence[dict[str, float]] = [{} for _ in folders]
    if recipe.greedy is not None:
        weights, seen = greedy(count, value, less=recipe.greedy.startswith("-"))
    elif recipe.alpha is not None:
        weights = [1 - recipe.alpha, recipe.alpha]
    else:
        weights = equal(range(count), count)
    rows = [
        {"model": Path(name).name if Path(name).is_absolute() else name, "weight": weight} | found
        for name, weight, found in zip(recipe.models, weights, seen, strict=True)
    ]
    with writing(model.parent):
        mix(folders, weights, new)
        files.write_json(new / FILE, {"greedy": recipe.greedy, "models": rows})
        for path in (*new.rglob("*"), new):
            files.sync(path)
        new.rename(model)
        files.sync(model.parent)


def greedy(
    count: int, value: Callable[[Sequence[float]], float], less: bool = False
) -> tuple[list[float], list[dict[str, float]]]:
    """Weights of `count` models; and of each its value `alone`, and the mean's `with` it when it was tried.

    Models are tried from the best to the worst, and stay where the mean does not get worse. `value`: of a
    mean with such weights; `less`: the smaller value is better.
    """
    alone = [value(equal([place], count)) for place in range(count)]
    best, *others = sorted(range(count), key=alone.__getitem__, reverse=not less)
    kept, reached = [best], alone[best]
    seen = [{"alone": each} for each in alone]
    for place in others:
        found = seen[place]["with"] = value(equal([*kept, place], count))
        if found <= reached if less else found >= reached:
            kept, reached = [*kept, place], found
    return equal(kept, count), seen


def equal(chosen: Collection[int], count: int) -> list[float]:
    """The same weight for what is chosen, 0 for the rest."""
    return [1 / len(chosen) if place in chosen else 0.0 for place in range(count)]


def _metric(recipe: SoupRecipe, folder: Path, weights: Sequence[float]) -> float:
    evaluator, wanted = recipe.evals[0], (recipe.greedy or "").removeprefix("-")
    rows = evaluator(load_embedder(folder), recipe.limits)
    metrics = {name: value for row in rows for name, value in row.metrics.items()}
    if wanted not in metrics:
        raise UserError(
            f"greedy: {name_of(type(evaluator))} has no metric '{wanted}'.{suggestion(wanted, [*metrics])} "
            f"It has: {', '.join(metrics)}"
        )
    if not isfinite(metrics[wanted]):
        mixed = ", ".join(name for name, weight in zip(recipe.models, weights, strict=True) if weight)
        raise UserError(
            f"greedy: {wanted} of {mixed} is {metrics[wanted]}, by which nothing can be chosen; leave that "
            "model out, or name another metric"
        )
    return metrics[wanted]
