"""Training, from a recipe to a folder; read it from top to bottom."""

from pathlib import Path

from vlalign.data.loader import loader
from vlalign.recipe.folder import claim
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.ema import with_momentum
from vlalign.train.feed import feed
from vlalign.train.finish import finish
from vlalign.train.folder import changeable, missing
from vlalign.train.interrupt import Interrupt
from vlalign.train.model import build, check_dtypes, check_fields, leave_out
from vlalign.train.progress import Display
from vlalign.train.rescalers import teach_rescalers
from vlalign.train.run import Run
from vlalign.train.runtime import Runtime
from vlalign.train.seeds import seed_step
from vlalign.train.state import frozen_digest
from vlalign.train.step import cached, separable
from vlalign.train.together import together


def train(recipe: TrainRecipe) -> Path | None:
    """Train, evaluate, explain and save; returns the run's folder, or None on every process but the first.

    A folder that already holds a part of this run is gone on with; a finished one is left as it is. `out`,
    `data.workers`, `log` and `checkpoint` may differ from then, for they change no number; `evals` until the
    trained model was measured.
    Raises UserError for what the user can put right, and SystemExit, once all is saved, after Ctrl-C (130)
    or SIGTERM (143).
    """
    with Runtime(recipe) as runtime:  # processes, device, precision
        return _train(recipe, runtime)


def _train(recipe: TrainRecipe, runtime: Runtime) -> Path | None:
    display = Display(runtime.main)
    with together(runtime):
        out = claim(recipe, changeable(recipe))  # writable, this recipe's, recipe.yaml written
    if not missing(out):
        display.say(f"{out} is finished; delete it, or an output in it, to make that again")
        return out if runtime.main else None

    with together(runtime):
        seed_step(recipe.seed, step=0, rank=0)
        source = recipe.data.train.build(recipe.data.limits)
        for licence in source.licences:
            display.say(f"data: {licence.name}, {licence.licence}, {licence.source}")
        check_fields(recipe, source)
        for spec in (
            getattr(each, name, None) for each in recipe.evals for name in ("data", "test", "counts")
        ):
            if build_early := getattr(spec, "build", None):
                build_early(recipe.data.limits)  # or a mistake in it would be told after the last step
        model = build(recipe)
        leave_out(recipe, model, source)
        model = model.to(runtime.device)
        check_dtypes(model, runtime.deepspeed)
        optimizer = recipe.optim.build(model)
    fed = feed(recipe, model, source, out, runtime, display)
    frozen = frozen_digest(model) + (fed.teacher.digest if fed.teacher is not None else "")
    run = Run(recipe, out, runtime, display, source, fed, frozen)
    runtime.prepare(model, optimizer, recipe.schedule.build(recipe.steps))
    task, data = recipe.task, recipe.data

    with Interrupt() as interrupt, run:
        done = run.resume()
        with together(runtime, soon=True):
            steps = loader(
                fed.chunks,
                chunk=data.chunk,
                start_step=done,
                steps=recipe.steps,
                workers=data.workers,
                rank=runtime.rank,
                world=runtime.world,
            )
        for step in range(done + 1, recipe.steps + 1):
            batches = run.next(steps)
            if fed.teacher is not None:
                with together(runtime, soon=True):
                    batches = [fed.teacher(chunk) for chunk in batches]
            seed_step(recipe.seed, step, runtime.rank)
            chunks = [runtime.place(chunk) for chunk in batches]
            rows = runtime.total(sum(task.rows(chunk) for chunk in chunks))  # known before the forward
            if run.average and getattr(task, "momentum", False):
                chunks = with_momentum(run.average, runtime.model, chunks)
            backward = cached if task.coupled and runtime.chunked else separable
            divisor = rows / runtime.world  # gradients are averaged over processes
            loss = backward(
                runtime, runtime.model, chunks, task, step=step, total=recipe.steps, divisor=divisor
            )
            teach_rescalers(runtime, model, task, chunks, backward, step=step, total=recipe.steps)
            numbers = runtime.move(step, loss, rows, [row for chunk in chunks for row in chunk["ids"]])
            samples = runtime.total(sum(len(chunk["ids"]) for chunk in chunks))  # a loss may count tokens
            run.after(step, numbers, samples, chunks)

            _leave_if_asked(run, interrupt, step, evaluated=False)
            if run.evaluate(step):
                _leave_if_asked(run, interrupt, step)
            if step % recipe.checkpoint.every == 0 or step == recipe.steps:
                run.save(step)
                _leave_if_asked(run, interrupt, step, saved=True)
    _leave_if_asked(run, interrupt, recipe.steps, saved=True)  # while trackers were closed
    finish(run)
    display.say(f"finished: {out / 'report.html'}")
    return out if runtime.main else None


def _leave_if_asked(
    run: Run, interrupt: Interrupt, step: int, *, evaluated: bool = True, saved: bool = False
) -> None:
    """After a signal to any process: save what is not saved yet, and leave. Every process calls it."""
    if run.runtime.total(int(interrupt.signal is not None)):
        if not saved:
            run.save(step, evaluated)
        run.display.say(
            f"stopped after step {step} of {run.recipe.steps}, which is saved; run it again to go on"
        )
        raise SystemExit(interrupt.exit_code)
