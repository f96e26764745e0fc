"""`vlalign direction`."""

import json
from pathlib import Path
from typing import Any

from vlalign.cli.arguments import Overrides, RecipePath


def direction(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Find the direction of an attribute among embeddings, and rank pictures by it."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.direction import direction as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="direction"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("pictures", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    _print(console, out)


def _print(console: Any, out: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    found = json.loads((out / "direction.json").read_text(encoding="utf-8"))
    for end, words in found.get("words", {}).items():
        shown = ", ".join(f"{each['name']} {each['score']:.2f}" for each in words)
        console.print(f"{end}: {escape(shown)}", soft_wrap=True)
    if held := found.get("held_out"):
        table = Table("told apart by", "AUC", "accuracy")
        for name in ("direction", "luminance", "colours"):
            if name in held:
                table.add_row(name, f"{held[name]['auc']:.1%}", f"{held[name]['accuracy']:.1%}")
        console.print(table)
    means = ", ".join(f"{name} {found[name]['score']:.3f}" for name in ("positive", "negative"))
    console.print(f"mean score: {means}, target {found['target']:.3f}", soft_wrap=True)
    console.print(f"direction: {out / 'direction.safetensors'}", soft_wrap=True)
    if "rank" in found:
        console.print(f"{found['rank']['used']} pictures ranked: {out / 'scores.jsonl'}", soft_wrap=True)
