"""`vlalign rerank`."""

from vlalign.cli.arguments import Overrides, RecipePath


def rerank(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Order queries' candidates by a reranker, or a dual encoder; run it again to go on where it stopped."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.rerank import rerank as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="rerank"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("queries", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    if out is not None:
        console.print(f"run: {out / 'run.trec'}\nrows: {out / 'candidates.jsonl'}", soft_wrap=True)
