"""`vlalign plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlalign.cli.arguments import Overrides, RecipePath

if TYPE_CHECKING:
    from vlalign.train.plan.forecast import Forecast


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    processes: Annotated[int | None, typer.Option(help="All of them; the launch file's, or 1.")] = None,
    device: Annotated[str, typer.Option(help="h100, h200, a100, l40s, l4, or cpu: this machine.")] = "h100",
    strategy: Annotated[str | None, typer.Option(help="ddp, zero1, zero2 or zero3.")] = None,
    launch: Annotated[Path | None, typer.Option(help="A launch file, as in recipes/launch/.")] = None,
) -> None:
    """Tell memory, messages and speed of a step before a machine is rented; no data, no weights are read."""
    from vlalign.recipe.decode import load_recipe
    from vlalign.recipe.read import read
    from vlalign.registry import suggestion
    from vlalign.train.plan.devices import NAMES
    from vlalign.train.plan.forecast import forecast
    from vlalign.train.plan.strategies import STRATEGIES, launched
    from vlalign.types import RecipeError

    by, count = launched(read(launch).value, str(launch)) if launch else ("ddp", 1)
    by, count = strategy or by, count if processes is None else processes
    for option, name, known in (("--device", device, list(NAMES)), ("--strategy", by, list(STRATEGIES))):
        if name not in known:
            raise RecipeError(
                f"{option}: unknown '{name}'.{suggestion(name, known)} Known: {', '.join(known)}"
            )
    show(forecast(load_recipe(recipe, overrides or (), verb="train"), count, device, by))


def show(told: "Forecast") -> None:
    """Print a forecast as tables, and what to change where it does not fit."""
    from rich.console import Console
    from rich.table import Table

    from vlalign.train.plan.devices import GIB
    from vlalign.train.plan.forecast import advice

    console, device = Console(), told.device
    heading = f"{told.processes} x {device.name}, {told.strategy.name}, {told.precision}"
    memory = Table(
        "memory of one process", "GiB at the peak", "GiB at its own", title=heading, title_justify="left"
    )
    for name, size in sorted(told.memory.items(), key=lambda item: -item[1]):
        memory.add_row(name, f"{size / GIB:.3f}", f"{told.most[name] / GIB:.3f}")
    memory.add_row("together", f"{told.peak / GIB:.3f}", style="bold")
    memory.add_row("that tensors may take", f"{told.room / GIB:.3f}")
    speed = Table("a step", "")
    for name, size in told.sent.items():
        speed.add_row(f"sent: {name}", f"{size / 2**20:,.1f} MiB")
    speed.add_row("products", f"{told.flops / 1e12:,.2f} TFLOP")
    speed.add_row(f"computing, at {device.reached:.0%} of the peak", f"{told.computing:.4f} s")
    speed.add_row(f"sending, at {device.link_of(told.processes) / 1e9:g} GB/s", f"{told.sending:.4f} s")
    speed.add_row("steps a second", f"{told.steps:.3g}", style="bold")
    speed.add_row("samples a second", f"{told.steps * told.batch:,.0f}", style="bold")
    console.print(memory, speed)
    learned = f"{told.learned / 1e6:,.1f} of {told.parameters / 1e6:,.1f} million parameters learn"
    console.print(
        f"{learned}; {told.rows} rows a forward, texts at the full context. {device.sheet}.", soft_wrap=True
    )
    console.print("It fits." if told.fits else "It does not fit. Change one of:", style="bold")
    for change in advice(told):
        console.print(f"  {change}", soft_wrap=True, markup=False)
