"""The folder of a run: what may change before it is gone on with, what is missing in it, and a full disk."""

import json
from contextlib import AbstractContextManager
from pathlib import Path

from vlalign.recipe import folder
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.checkpoint import PATTERN

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


def writing(out: Path) -> AbstractContextManager[None]:
    """Inside, only `out` is written. Raises UserError for what the disk refuses."""

    def then() -> str:
        newest = max((each.name for each in out.glob(PATTERN)), default="none")
        return f"the last whole checkpoint is {newest}. Put that right, and run it again to go on"

    return folder.writing(out, then)
