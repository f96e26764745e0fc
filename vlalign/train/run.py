"""What goes on around the steps of a run: log, display, trackers, averages, evaluations, checkpoints."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from vlalign.evals.report.versions import versions
from vlalign.recipe.schemas import TrainRecipe
from vlalign.specs import EvalRow, Evaluator
from vlalign.train import state
from vlalign.train.checkpoint import Checkpoints
from vlalign.train.ema import Average
from vlalign.train.feed import Feed
from vlalign.train.folder import writing
from vlalign.train.log import LogFile
from vlalign.train.progress import Display
from vlalign.train.runtime import Runtime
from vlalign.train.seeds import seed_step
from vlalign.train.tally import Tally
from vlalign.train.together import together
from vlalign.train.trackers import Trackers
from vlalign.types import Batch, Source


class Run:
    """One run in one folder, between `resume` and `stop`."""

    def __init__(
        self,
        recipe: TrainRecipe,
        out: Path,
        runtime: Runtime,
        display: Display,
        source: Source,
        fed: Feed,
        frozen: str,
    ) -> None:
        self.recipe, self.out, self.runtime, self.display, self.source = recipe, out, runtime, display, source
        self.fed, self.frozen = fed, frozen
        self.checkpoints = Checkpoints(out, recipe.checkpoint.keep, display.say)
        self.exits = ExitStack()
        self.tally = Tally()
        self.waited = self.since = 0.0
        self.before = (0, 0)  # steps and rows at the last log line

    def resume(self) -> int:
        """Go on from the newest whole checkpoint, or begin; returns the steps that are done."""
        self.average = Average(self.runtime.bare, self.recipe.ema) if self.recipe.ema else None
        with self.guarded():
            folder = self.checkpoints.newest() if self.runtime.main else None
        folder = self.runtime.gather(folder)[0]
        step = 0
        if folder is not None:
            with together(self.runtime):
                record = state.checked(folder, self.runtime, self.frozen)
            state.restore(folder, record, self.runtime, self.average)
            if self.fed.teacher is not None:
                self.fed.teacher.restore(folder)
            step, self.tally = record["step"], Tally(**record["tally"])
            self.display.say(f"resumed from {folder}, {step} of {self.recipe.steps} steps done")
            if (before := record["rows"]) != len(self.source):
                self.display.say(
                    f"data: {len(self.source)} rows, {before} when {folder.name} was written; "
                    "from here on they come in another order, and this epoch may miss or repeat some"
                )
        self.tally.note(self.fed.found)
        with self.guarded():
            if self.runtime.main:
                self.checkpoints.sweep()
                self._open(step)
        if folder is not None and not record["evaluated"]:
            self.evaluate(step)
        self.display.start(step, self.recipe.steps)
        self.exits.callback(self.display.stop)
        self.before, self.since = (step, self.tally.seen), time.perf_counter()
        return step

    def _open(self, step: int) -> None:
        self.log = LogFile(self.out / "log.jsonl", step)
        self.exits.callback(self.log.close)
        self.trackers = Trackers(self.recipe.log.trackers, self.out, self.display.say, step)
        self.exits.callback(self.trackers.close)
        if self.log.fresh:
            self.log.write({"header": self._header()})

    def _header(self) -> dict[str, Any]:
        """What the run is made of."""
        return {
            "versions": versions(),
            "rows": self.tally.account(self.source),
            "processes": self.runtime.world,
            "device": self.runtime.device.type,
            "precision": self.runtime.precision,
        }

    def next(self, steps: Iterator[list[Batch]]) -> list[Batch]:
        """The chunks of a step, keeping count of the seconds that it waits for them."""
        start = time.perf_counter()
        with together(self.runtime, soon=True):  # a bad row of one process alone may end the run
            chunks = next(steps)
        self.waited += time.perf_counter() - start
        return chunks

    def after(self, step: int, numbers: Mapping[str, Any], rows: int, chunks: Sequence[Batch]) -> None:
        """What follows the optimizer's step: average, counts of rows, display, log."""
        if self.average:
            self.average.update(step)
        self.tally.add(rows, chunks)
        self.display.advance(step)
        if step == 1 or step % self.recipe.log.every == 0 or step == self.recipe.steps:
            self._log(step, numbers)

    def _log(self, step: int, numbers: Mapping[str, Any]) -> None:
        self.tally.share(self.runtime.gather)
        now = time.perf_counter()
        seconds, steps, rows = now - self.since, step - self.before[0], self.tally.seen - self.before[1]
        timing = {
            "samples_per_second": rows / seconds,
            "step": seconds / steps,
            "data": self.waited / seconds,
        }
        self.before, self.since, self.waited = (step, self.tally.seen), now, 0.0
        if not self.runtime.main:
            return
        counts = {"samples_seen": self.tally.seen, "bad_rows": len(self.tally.bad)}
        line = {**numbers, **counts, "time": timing}
        self.log.write(line)
        self.display.show(line, self.recipe.steps)
        flat = {name: value for name, value in numbers.items() if isinstance(value, float)}
        parts = {f"parts/{name}": value for name, value in numbers["parts"].items()}
        self.trackers.log(step, flat | parts | {"samples_per_second": timing["samples_per_second"]})

    def evaluate(self, step: int) -> bool:
        """Run the evaluators whose turn it is, and log what they find; the last step's are `finish`'s.

        Returns whether there were any.
        """
        due = [each for each in self.recipe.evals if each.every and step % each.every == 0]
        if not due or step == self.recipe.steps:
            return False
        start = time.perf_counter()
        with self.averaged():
            rows = self.measure(due, step)
        if self.runtime.main:
            found = [{"dataset": row.dataset, "task": row.task, "metrics": dict(row.metrics)} for row in rows]
            self.log.write({"step": step, "evals": found, "time": {"seconds": time.perf_counter() - start}})
            for row in rows:
                self.trackers.log(
                    step, {f"{row.dataset}/{name}": value for name, value in row.metrics.items()}
                )
                told = "  ".join(f"{name} {value:.4f}" for name, value in row.metrics.items())
                self.display.say(f"step {step}  {row.dataset}  {told}")
        return True

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has its averaged weights, if the recipe keeps any."""
        return self.average.applied() if self.average else nullcontext()

    def measure(self, evaluators: Sequence[Evaluator], step: int) -> list[EvalRow]:
        """What evaluators find in the weights of now. Their random numbers depend on the step alone."""
        seed_step(self.recipe.seed, step, rank=0)
        limits = replace(self.recipe.data.limits, draft=None)  # as `vlalign eval` reads unless told
        with self.runtime.evaluating() as model, together(self.runtime):
            scorer = self.fed.scorer(model)
            return [row for evaluator in evaluators for row in evaluator(scorer, limits)]

    def save(self, step: int, evaluated: bool = True) -> None:
        """Write a checkpoint; every process calls it."""
        self.tally.share(self.runtime.gather)
        record = {"step": step, "evaluated": evaluated, "tally": asdict(self.tally)}
        record |= {"frozen": self.frozen, "rows": len(self.source)}
        with self.guarded():
            if self.runtime.main:
                self.log.sync()
        with self.checkpoints.writing(step, self.runtime.main, self.guarded) as folder:
            state.save(folder, self.runtime, self.average, record)
            if self.fed.teacher is not None:
                self.fed.teacher.save(folder)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, each process may write in the run's folder; what the disk refuses to one ends all."""
        with together(self.runtime), writing(self.out):
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Leave log, trackers and display closed, whatever happened.

        Raises UserError or SystemExit when other processes are gone: here, while SIGTERM is only remembered,
        for the launcher sends it as soon as one of them has ended.
        """
        self.exits.close()
        self.runtime.explain(error)
