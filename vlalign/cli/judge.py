"""`vlalign judge`."""

from vlalign.cli.arguments import Overrides, RecipePath


def judge(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Judge queries' candidates; run it again to go on where it stopped."""
    import json

    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from vlalign.infer.judge import judge as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="judge"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("queries", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    if out is None:
        return
    found = json.loads((out / "judged.json").read_text(encoding="utf-8"))
    if "score" in found:
        columns = ("auc", "f1", "R@1", "mrr")
        table = Table("", *columns)
        for name, numbers in ((told.number, found["score"]), *found["alone"].items()):
            table.add_row(name, *(f"{numbers[each]:.3f}" for each in columns))
        console.print(table)
    console.print(f"rows: {out / 'candidates.jsonl'}\nabout them: {out / 'judged.json'}", soft_wrap=True)
