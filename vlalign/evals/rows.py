"""What evaluators found, on disk: `metrics.json` to compare runs, `exhibits.json` for the report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlalign.files import write_json
from vlalign.specs import EvalRow
from vlalign.types import UserError

METRICS, EXHIBITS = "metrics.json", "exhibits.json"


def write_rows(out: Path, rows: Sequence[EvalRow]) -> None:
    """Write both files of `out`, row by row in the same order, each atomically; no number is rounded."""
    out.mkdir(parents=True, exist_ok=True)
    named = [{"dataset": row.dataset, "task": row.task} for row in rows]
    metrics = [{"metrics": dict(row.metrics), "chance": dict(row.chance)} for row in rows]
    write_json(out / METRICS, [name | found for name, found in zip(named, metrics, strict=True)])
    exhibits = [{"exhibits": dict(row.exhibits)} for row in rows]
    write_json(out / EXHIBITS, [name | found for name, found in zip(named, exhibits, strict=True)])


def read_rows(out: Path) -> list[EvalRow]:
    """The rows of `out`, [] when it has none; exhibits are {} where `exhibits.json` is missing.

    Raises UserError where the two files are not of one evaluation.
    """
    if not (out / METRICS).exists():
        return []
    metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    shown: list[dict[str, Any]] = [{} for _ in metrics]
    if (out / EXHIBITS).exists():
        shown = json.loads((out / EXHIBITS).read_text(encoding="utf-8"))
    if len(shown) != len(metrics):
        raise UserError(
            f"{out / EXHIBITS} has {len(shown)} rows, {METRICS} has {len(metrics)}; evaluate again"
        )
    return [
        EvalRow(**row, exhibits=more.get("exhibits", {})) for row, more in zip(metrics, shown, strict=True)
    ]
