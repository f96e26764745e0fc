"""`vlalign mine`."""

from vlalign.cli.arguments import Overrides, RecipePath


def mine(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Find queries' hard negatives among documents, by a model; run it again to go on where it stopped."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.mine import mine as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="mine"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("queries", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    if out is not None:
        names = {"rows": "candidates.jsonl", "run": "run.trec", "what was found": "mined.json"}
        console.print("\n".join(f"{what}: {out / name}" for what, name in names.items()), soft_wrap=True)
