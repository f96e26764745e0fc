"""`out`: whose it is, and whether it can be written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vlalign.recipe.decode import differences, load_recipe, write
from vlalign.types import RecipeError, UserError

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


@contextmanager
def writing(
    out: Path, then: Callable[[], str] = lambda: "put that right, and run it again"
) -> Iterator[None]:
    """Inside, only `out` is written. Raises UserError for what the disk refuses; `then`: what to do then."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _refused(out, error, then()) from error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):  # which torch's archive has stumbled over
            raise
        raise _refused(out, error.__context__, then()) from error


def _refused(out: Path, error: Exception, then: str) -> UserError:
    place, why = (getattr(error, name, None) for name in ("filename", "strerror"))
    return UserError(f"out: {place or out} cannot be written: {why or error}; {then}")


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
