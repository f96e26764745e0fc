"""`vlalign train`."""

from vlalign.cli.arguments import Overrides, RecipePath


def train(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Train what a recipe describes; evaluate, explain and save it under its `out`."""
    from vlalign.cli.table import print_metrics
    from vlalign.recipe.decode import load_recipe
    from vlalign.train.loop import train as run

    out = run(load_recipe(recipe, overrides or (), verb="train"))
    if out is not None:
        print_metrics(out)
