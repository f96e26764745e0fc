"""`out`: whose it is, whether it can be written, and what is missing in it."""

from dataclasses import MISSING
from pathlib import Path

from vlalign.recipe.decode import differences, load_recipe, write
from vlalign.recipe.schemas import TrainRecipe
from vlalign.types import RecipeError

OUTPUTS = ("metrics.json", "exhibits.json", "rows.json", "model", "report.html")


def claim(recipe: TrainRecipe) -> Path:
    """The folder of a recipe, with `recipe.yaml` in it.

    Raises RecipeError when it cannot be written, or when another recipe has run in it.
    """
    out = Path(recipe.out)
    if (out / "recipe.yaml").exists():
        _same(load_recipe(out / "recipe.yaml"), recipe, out)
    write(recipe, out)
    return out


def missing(out: Path) -> list[str]:
    """Which outputs of a finished run are not there."""
    return [name for name in OUTPUTS if not (out / name).exists()]


def _same(before: TrainRecipe, now: TrainRecipe, out: Path) -> None:
    """Raises RecipeError that names what differs; `out` may have been moved, or be written otherwise."""
    told = [
        f"  {path}: {_tell(old)} there, {_tell(new)} here"
        for path, old, new in differences(before, now)
        if path != "out"
    ]
    if told:
        head = f"out: {out} holds a run of another recipe; name another folder, or delete that one"
        raise RecipeError("\n".join([head, *told]))


def _tell(value: object) -> str:
    return "nothing" if value is MISSING else repr(value)
