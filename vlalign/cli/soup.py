"""`vlalign soup`."""

from vlalign.cli.arguments import Overrides, RecipePath


def soup(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Average the weights of trained models: of all, of those that help, or of two in a proportion."""
    from rich.console import Console
    from rich.table import Table

    from vlalign.cli.table import print_metrics
    from vlalign.infer.soup import finished, read
    from vlalign.infer.soup import soup as run
    from vlalign.recipe.decode import load_recipe

    told = load_recipe(recipe, overrides or (), verb="soup")
    before, out, console = finished(told), run(told), Console()
    if before:
        console.print(f"{out} is finished; delete it to make it again", soft_wrap=True)
    columns = ("weight", "alone", "with") if told.greedy else ("weight",)
    table = Table("model", *columns, title=told.greedy)
    for row in read(out):
        table.add_row(row["model"], *(f"{row[name]:.4g}" if name in row else "" for name in columns))
    console.print(table)
    if told.evals:
        print_metrics(out)
    else:
        console.print(f"model: {out / 'model'}", soft_wrap=True)
