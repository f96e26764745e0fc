"""The folder of a run: what may change before it is gone on with, and what is missing in it."""

from pathlib import Path

OUTPUTS = ("metrics.json", "exhibits.json", "rows.json", "model", "report.html")
NUMBERLESS = ("data.workers", "log.*", "checkpoint.*")  # paths of a recipe that change no number of a run


def missing(out: Path) -> list[str]:
    """Which outputs of a finished run are not there."""
    return [name for name in OUTPUTS if not (out / name).exists()]
