"""`vlalign push`."""

from typing import Annotated

import typer

from vlalign.cli.arguments import Overrides, RecipePath


def push(
    recipe: RecipePath,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, contact nothing.")] = False,
) -> None:
    """Upload a trained model, its adapters and its card to the Hub."""
    from rich.console import Console
    from rich.table import Table

    from vlalign.models.hub import push as upload
    from vlalign.recipe.decode import load_recipe

    told = load_recipe(recipe, overrides or (), verb="push")
    options = {name: getattr(told, name) for name in ("private", "message", "licence", "adapter")}
    files = upload(told.model, told.repo, dry_run=dry_run, **options)
    heading = "would go to" if dry_run else "went to"
    table = Table("file", "bytes", title=f"{heading} {told.repo} ({'private' if told.private else 'public'})")
    for name, size in files:
        table.add_row(name, f"{size:,}")
    Console().print(table)
