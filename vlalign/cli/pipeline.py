"""`vlalign pipeline`."""

from typing import Annotated

import typer

from vlalign.cli.arguments import Overrides, RecipePath

Jobs = Annotated[int, typer.Option(min=1, help="How many stages at once.")]
From = Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Run it again, and what reads it.")]
Launch = Annotated[
    str, typer.Option(metavar="ARGUMENTS", help="Of `accelerate launch`, for stages that processes share.")
]


def pipeline(
    recipe: RecipePath, overrides: Overrides = None, jobs: Jobs = 1, again: From = None, launch: Launch = ""
) -> None:
    """Run the stages of a recipe that are not done; run it again to go on where it stopped."""
    import json
    import shlex
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from vlalign.infer.pipeline import pipeline as run
    from vlalign.recipe.decode import load_recipe

    told, console = load_recipe(recipe, overrides or (), verb="pipeline"), Console()

    def tell(line: str) -> None:
        console.print(line, soft_wrap=True, markup=False, highlight=False)

    whole = run(told, jobs=jobs, again=again, launch=shlex.split(launch), tell=tell)
    out = Path(told.out)
    found = json.loads((out / "pipeline.json").read_text(encoding="utf-8"))
    for name, judged in found["judges"].items():
        tell(f"{name}: {judged['verdict']}")
    for each in found["comparisons"]:
        table = Table(
            "stage",
            "seeds",
            "mean",
            "gain",
            "over its control",
            title=f"{each['dataset']}  {each['metric']}",
            title_justify="left",
        )
        for row in each["rows"]:
            control = row.get("control", {"gain": ""})["gain"]
            numbers = (str(row["seeds"]), f"{row['mean']:.4f}", row["gain"], control)
            table.add_row(row["stage"], *numbers)
        console.print(table)
    tell(f"report: {out / 'report.html'}")
    if not whole:
        raise typer.Exit(1)
