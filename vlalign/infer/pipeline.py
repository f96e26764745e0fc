"""Run the stages of a pipeline that are not done, each in a process of its own, and tell of all of them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vlalign.evals.report.pipeline import report
from vlalign.infer.stages import Run, runs
from vlalign.recipe.decode import load_recipe, write
from vlalign.recipe.folder import writing
from vlalign.recipe.pipelining import OWN, PipelineRecipe
from vlalign.types import RecipeError, UserError

DONE, SAME, FAILED, LEFT = "done", "unchanged", "failed", "left out"
LAUNCHED = ("train", "mine", "judge", "rerank")  # verbs that several processes share
SHOWN = 12  # lines of what a run said last


def pipeline(
    recipe: PipelineRecipe,
    *,
    jobs: int = 1,
    again: str | None = None,
    launch: Sequence[str] = (),
    tell: Callable[[str], None] = print,
) -> bool:
    """Write `out/STAGE` of each and `out/{recipe.yaml, pipeline.json, report.html}`; whether none failed.

    `jobs`: how many runs at once. `again`: the stage from which all is run again. `launch`: arguments of
    `accelerate launch`, for verbs that several processes share. `tell` hears a line about each run. Raises
    UserError.
    """
    out = Path(recipe.out)
    if (out / "recipe.yaml").exists() and load_recipe(out / "recipe.yaml").verb != recipe.verb:
        raise RecipeError(f"out: {out} holds a run of another verb; name another folder")
    if again is not None and again not in recipe.stages:
        raise RecipeError(f"--from: there is no stage '{again}'; there are {', '.join(recipe.stages)}")
    every = runs(recipe)
    write(recipe, out)
    with writing(out):
        (out / OWN).mkdir(exist_ok=True)
        for run in _reading(every, again):
            with _locked(run):
                run.set_aside()
        states = Stages(every, jobs, launch, tell).go()
        report(recipe, [{**_known(run), **states[run.name]} for run in every])
    return all(each["state"] != FAILED for each in states.values())


class Stages:
    """All runs of a pipeline, in the order that what they read is done."""

    def __init__(
        self, every: Sequence[Run], jobs: int, launch: Sequence[str], tell: Callable[[str], None]
    ) -> None:
        self.jobs, self.launch, self.tell = jobs, launch, tell
        self.waiting = list(every)
        self.running: dict[str, tuple[Run, subprocess.Popen[bytes], float]] = {}
        self.states: dict[str, dict[str, Any]] = {}

    def go(self) -> dict[str, dict[str, Any]]:
        """`{"state", "why"}` of each by its name, once all are settled."""
        with _stopping(self.running):
            while self.waiting or self.running:
                for run in [each for each in self.waiting if each.after <= self.states.keys()]:
                    if len(self.running) < self.jobs:
                        self.waiting.remove(run)
                        self._begin(run)
                for run, process, began in [*self.running.values()]:
                    if process.poll() is not None:
                        self._end(run, process.returncode, time.time() - began)
                time.sleep(0.02)
        return self.states

    def _begin(self, run: Run) -> None:
        for other in sorted(run.after):
            if self.states[other]["state"] in (FAILED, LEFT):
                return self._settle(run, LEFT, f"{other} is {self.states[other]['state']}")
        for judge, wanted in run.when.items():
            found = "informative" if _informative(run.pipeline / judge / "judged.json") else "not informative"
            if found != wanted:
                return self._settle(run, LEFT, f"{judge} is {found}")
        key, known = run.key(), run.known()
        if known.get("key") == key and known.get("state") == DONE:
            return self._settle(run, SAME)
        self.tell(f"{run.name}: vlalign {run.verb} {run.arguments[0]}")
        with _locked(run) as lock:
            if known.get("key") != key:
                run.set_aside()
                known = {}
            run.note(**{**known, "key": key, "state": "begun", "verb": run.verb})
            process = _started(run, self.launch, self.jobs, lock.fileno())
        self.running[run.name] = run, process, time.time()
        return None

    def _end(self, run: Run, code: int, seconds: float) -> None:
        del self.running[run.name]
        before = run.known()
        state = FAILED if code else DONE
        run.note(**{**before, "state": state, "seconds": before.get("seconds", 0.0) + seconds})
        if code:
            said = run.log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]
            why = f"it ended with {code}; what it said is in {run.log}"
            self.tell("\n".join([f"{run.name}: failed, {why}", *(f"  {line}" for line in said)]))
            return self._settle(run, FAILED, why)
        return self._settle(run, DONE)

    def _settle(self, run: Run, state: str, why: str = "") -> None:
        self.states[run.name] = {"state": state, "why": why}
        if state != FAILED:
            self.tell(f"{run.name}: {state}{', ' if why else ''}{why}")


def _informative(path: Path) -> bool:
    """Raises UserError where nothing tells."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}; run that stage again with --from") from None
    return bool(told.get("informative"))


def _started(run: Run, launch: Sequence[str], jobs: int, lock: int) -> "subprocess.Popen[bytes]":
    """Its process, which keeps `lock`, a descriptor, for as long as it lives."""
    before: list[str] = []
    if launch and run.verb in LAUNCHED:
        before = ["accelerate.commands.launch", *launch, "-m"]
    environment = dict(os.environ)
    if jobs > 1:
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    with run.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", *before, "vlalign", run.verb, *run.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C is told to it once, by this process
        )


@contextmanager
def _locked(run: Run) -> Iterator[IO[bytes]]:
    """A file that a process of an earlier pipeline, which was killed alone, may hold. Raises UserError."""
    import fcntl

    with run.state.with_suffix(".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"out: another process writes {run.out}; wait for it or end it, and run this again"
            ) from None
        yield file


@contextmanager
def _stopping(running: Mapping[str, tuple[Run, "subprocess.Popen[bytes]", float]]) -> Iterator[None]:
    """Inside, SIGTERM is as Ctrl-C; whatever ends this ends what is running, which saves what it has."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.wait()


def _reading(every: Sequence[Run], stage: str | None) -> list[Run]:
    """The runs of a stage, and all that read them, directly or by others."""
    found = [run for run in every if run.stage == stage]
    names = {run.name for run in found}
    for run in every:  # what they read is above them
        if run.after & names and run.name not in names:
            found.append(run)
            names.add(run.name)
    return found


def _known(run: Run) -> dict[str, Any]:
    seconds = run.known().get("seconds")
    return {"name": run.name, "stage": run.stage, "seed": run.seed, "verb": run.verb, "seconds": seconds}
