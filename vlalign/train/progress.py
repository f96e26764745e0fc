"""What a person sees while training: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Messages and progress on standard error, of the process that speaks."""

    def __init__(self, speaks: bool = True) -> None:
        self.console = Console(file=sys.stderr, quiet=not speaks, soft_wrap=True, highlight=False)
        self.bar: Progress | None = None

    def say(self, message: str) -> None:
        """One line, above the bar if there is one."""
        self.console.print(message, markup=False)

    def start(self, step: int, steps: int) -> None:
        """Show the bar of a run that has done `step` steps."""
        if self.console.is_terminal:
            words = TextColumn("{task.fields[numbers]}")
            self.bar = Progress(
                BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), words, console=self.console
            )
            self.task = self.bar.add_task("train", total=steps, completed=step, numbers="")
            self.bar.start()

    def advance(self, step: int) -> None:
        """A step is done."""
        if self.bar:
            self.bar.update(self.task, completed=step)

    def show(self, line: Mapping[str, Any], steps: int) -> None:
        """The numbers of a log line: in the bar, or as a line of their own."""
        time = line["time"]
        scale = "  scale {scale:.2f}" if "scale" in line else ""
        learnt = f"loss {{loss:.4f}}  lr {{lr:.2e}}{scale}  norm {{norm:.2f}}".format(**line)
        numbers = f"{learnt}  {time['samples_per_second']:.0f} samples/s  data {time['data']:.0%}"
        if self.bar:
            self.bar.update(self.task, numbers=numbers)
        else:
            self.say(f"step {line['step']}/{steps}  {numbers}")

    @contextmanager
    def counting(self, doing: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for something else; call what it gives with each count of finished items."""
        if not self.console.is_terminal:
            yield lambda count: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(doing, total=total)
            yield lambda count: bar.advance(task, count)

    def stop(self) -> None:
        """Leave the bar as it is."""
        if self.bar:
            self.bar.stop()
            self.bar = None
