"""`vlalign name`."""

import json
from pathlib import Path
from typing import Any

from vlalign.cli.arguments import Overrides, RecipePath

SHOWN = 20  # clusters in the table


def name(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Name unlabelled pictures out of a large vocabulary, by clusters that vote."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.name import name as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="name"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    _print(console, out)


def _print(console: Any, out: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    found = json.loads((out / "named.json").read_text(encoding="utf-8"))
    table = Table("name", "pictures", "votes", "who has most votes")
    for each in found["clusters"][:SHOWN]:
        most = ", ".join(f"{name} {share:.0%}" for name, share in each["votes"].items())
        table.add_row(escape(each["name"]), str(each["size"]), f"{each['share']:.0%}", escape(most))
    console.print(table)
    left = len(found["clusters"]) - SHOWN
    rest = f"; {left} more in {out / 'named.json'}" if left > 0 else ""
    skipped = "".join(f", {count} {reason}" for reason, count in found["skipped"].items())
    console.print(
        f"{found['used']} pictures{skipped}, {len(found['clusters'])} clusters{rest}", soft_wrap=True
    )
    console.print(f"rows: {out / 'captions.jsonl'}", soft_wrap=True)
