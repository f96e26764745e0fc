"""`vlalign triplets`."""

from vlalign.cli.arguments import Overrides, RecipePath


def triplets(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Find queries of a picture and a text among captioned pictures, for a combiner to learn from."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.triplets import triplets as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="triplets"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("triplets", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    names = {"rows": "triplets.jsonl", "what was found": "triplets.json"}
    console.print("\n".join(f"{what}: {out / name}" for what, name in names.items()), soft_wrap=True)
