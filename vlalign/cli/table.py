"""The metrics of a run as a table in the terminal."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table


def print_metrics(out: Path) -> None:
    """Print `out/metrics.json`, each number beside its chance level, and where the report lies."""
    console = Console()
    for row in json.loads((out / "metrics.json").read_text(encoding="utf-8")):
        table = Table(
            "metric", "value", "chance", title=f"{row['dataset']}  {row['task']}", title_justify="left"
        )
        for name, value in row["metrics"].items():
            chance = row["chance"].get(name)
            table.add_row(name, f"{value:.4g}", "" if chance is None else f"{chance:.4g}")
        console.print(table)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
