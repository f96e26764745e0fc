"""The folder of a run: what may change before it is gone on with, what is missing in it, and a full disk."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.checkpoint import PATTERN
from vlalign.types import UserError

OUTPUTS = ("metrics.json", "exhibits.json", "rows.json", "model", "report.html")
NUMBERLESS = ("data.workers", "log.*", "checkpoint.*")  # paths of a recipe that change no number of a run


def changeable(recipe: TrainRecipe) -> tuple[str, ...]:
    """Paths that may differ when a run goes on: evaluators too, until the trained model was measured."""
    measured = (Path(recipe.out) / "metrics.json").exists()
    return NUMBERLESS if measured else (*NUMBERLESS, "evals", "evals.*")


def missing(out: Path) -> list[str]:
    """Which outputs of a finished run are not there, or are damaged."""
    return [name for name in OUTPUTS if not _whole(out / name)]


def _whole(path: Path) -> bool:
    if path.suffix != ".json":
        return path.exists()
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # also: not UTF-8
        return False
    return True


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Inside, only `out` is written. Raises UserError for what the disk refuses."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise _refused(out, error) from error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):  # which torch's archive has stumbled over
            raise
        raise _refused(out, error.__context__) from error


def _refused(out: Path, error: Exception) -> UserError:
    place, why = (getattr(error, name, None) for name in ("filename", "strerror"))
    newest = max((folder.name for folder in out.glob(PATTERN)), default="none")
    return UserError(
        f"out: {place or out} cannot be written: {why or error}; the last whole checkpoint is {newest}. "
        "Put that right, and run it again to go on"
    )
