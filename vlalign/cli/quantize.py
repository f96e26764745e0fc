"""`vlalign quantize`."""

from vlalign.cli.arguments import Overrides, RecipePath


def quantize(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Put a reranker's weights into few bits, by what its own prompts look like to each layer."""
    from rich.console import Console
    from rich.progress import Progress

    from vlalign.infer.quantize import finished, read
    from vlalign.infer.quantize import quantize as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="quantize"), Console()
    if finished(told):
        console.print(f"{told.out} is finished; delete it to make it again", soft_wrap=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("layers", total=None)
        out = run(told, lambda count: bar.advance(task, count))
    made = read(out)
    console.print(f"{made['layers']} weights in {made['bits']} bits, by {len(made['pairs'])} pairs")
    console.print(f"model: {out / 'model'}", soft_wrap=True)
