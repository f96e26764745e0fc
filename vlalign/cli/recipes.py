"""`vlalign recipes`: what recipes there are, what they say once resolved, and whether they can run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from vlalign.cli.arguments import Overrides, RecipePath

app = typer.Typer(no_args_is_help=True, help="List, show, check and compare recipes.")
Paths = Annotated[list[Path] | None, typer.Argument(metavar="[RECIPE]...", show_default=False)]


def shipped() -> list[Path]:
    """The recipe files that came with the package, beside it in a checkout or inside it when installed."""
    package = Path(__file__).parents[1]
    root = next(
        (path for path in (package / "recipes", package.parent / "recipes") if path.is_dir()), package
    )
    here = Path.cwd()
    return [
        path.relative_to(here) if path.is_relative_to(here) else path for path in sorted(root.rglob("*.yaml"))
    ]


@app.command("list")
def list_recipes() -> None:
    """The shipped recipes: verb, path, first line of the comment at their head."""
    from vlalign.recipe.read import read

    for path in shipped():
        verb = read(path).value.get("verb")
        if verb:
            head = path.read_text(encoding="utf-8").partition("\n")[0]
            print(f"{verb:<6} {path}  {head.removeprefix('#').strip() if head.startswith('#') else ''}")


@app.command("show")
def show(recipe: RecipePath, overrides: Overrides = None) -> None:
    """A recipe as it would run: parents merged, overrides applied, every default written out."""
    from ruamel.yaml import YAML

    from vlalign.recipe.decode import load_recipe
    from vlalign.registry import encode

    YAML().dump(encode(load_recipe(recipe, overrides or ())), sys.stdout)


@app.command("check")
def check(recipes: Paths = None) -> None:
    """Check recipes (default: all shipped) without loading data or weights. Exit code 2 on mistakes."""
    from vlalign.recipe.decode import decode
    from vlalign.recipe.read import read
    from vlalign.types import RecipeError

    failed = False
    for path in recipes or shipped():
        try:
            document = read(path)
            if "verb" in document.value:
                decode(document)
                print(f"{path}: ok")
            else:
                print(f"{path}: has no verb, so it is read only by other files")
        except RecipeError as error:
            failed = True
            print(error, file=sys.stderr)
    if failed:
        raise typer.Exit(2)


@app.command("diff")
def diff(a: RecipePath, b: RecipePath) -> None:
    """The paths where two recipes differ once resolved. Exit code 1 when they do."""
    from dataclasses import MISSING

    from rich.console import Console
    from rich.table import Table

    from vlalign.recipe.decode import differences, load_recipe

    table = Table("path", str(a), str(b))
    for path, *values in differences(load_recipe(a), load_recipe(b)):
        table.add_row(path, *("" if value is MISSING else repr(value) for value in values))
    if table.row_count:
        Console().print(table)
        raise typer.Exit(1)
    print("no difference")
