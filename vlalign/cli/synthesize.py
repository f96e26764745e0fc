"""`vlalign synthesize`."""

from vlalign.cli.arguments import Overrides, RecipePath


def synthesize(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Let a language model write a document for each query; run it again to go on where it stopped."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.synthesize import synthesize as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="synthesize"), Console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("queries", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    if out is not None:
        console.print(f"documents: {out / 'documents.jsonl'}", soft_wrap=True)
