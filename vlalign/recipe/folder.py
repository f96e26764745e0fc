"""`out`: whose it is, and whether it can be written."""

from collections.abc import Sequence
from dataclasses import MISSING
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlalign.recipe.decode import differences, load_recipe, write
from vlalign.types import RecipeError

SHOWN = 10  # differences in a message


def claim(recipe: Any, free: Sequence[str] = ()) -> Path:
    """The folder of a recipe, with `recipe.yaml` in it. `free`: patterns of paths that may differ from then.

    Raises RecipeError when it cannot be written, or when another recipe has run in it.
    """
    out = Path(recipe.out)
    if (out / "recipe.yaml").exists():
        _same(load_recipe(out / "recipe.yaml"), recipe, out, free)
    write(recipe, out)
    return out


def _same(before: Any, now: Any, out: Path, free: Sequence[str]) -> None:
    """Raises RecipeError that names what differs; `out` may have been moved, or be written otherwise."""
    told = [
        f"  {path}: {_tell(old)} there, {_tell(new)} here"
        for path, old, new in differences(before, now)
        if not any(fnmatchcase(path, pattern) for pattern in ("out", *free))
    ]
    if told:
        head = f"out: {out} holds a run of another recipe; name another folder, or delete that one"
        more = [f"  and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
        raise RecipeError("\n".join([head, *told[:SHOWN], *more]))


def _tell(value: object) -> str:
    return "nothing" if value is MISSING else repr(value)
