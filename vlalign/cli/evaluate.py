"""`vlalign eval`."""

from vlalign.cli.arguments import Overrides, RecipePath


def evaluate(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Measure any saved model, or one on the Hub, zero-shot: `vlalign eval RECIPE model=FOLDER_OR_HUB_ID`."""
    from vlalign.cli.table import print_metrics
    from vlalign.infer.evaluate import evaluate as run
    from vlalign.recipe.decode import load_recipe

    print_metrics(run(load_recipe(recipe, overrides or (), verb="eval")))
