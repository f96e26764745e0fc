"""The outputs of a run that has done its steps; those that are there stay."""

from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.files import write_json
from vlalign.models.weights import save as save_model
from vlalign.train.folder import missing
from vlalign.train.run import Run

STALE = ("metrics.json", "exhibits.json", "report.html")  # where the model is measured again


def finish(run: Run) -> None:
    """Write what is missing of metrics, counts of rows, model and report; every process calls it.

    Raises UserError for what the disk refuses.
    """
    absent, main = run.runtime.gather(missing(run.out))[0], run.runtime.main
    with run.averaged():
        with run.runtime.whole() as model, run.guarded():
            if "model" in absent and main:
                save_model(model, run.out / "model")
        if "metrics.json" in absent or "exhibits.json" in absent:
            with run.guarded():
                for name in STALE if main else ():
                    (run.out / name).unlink(missing_ok=True)
            rows = run.measure(run.recipe.evals, run.recipe.steps)
            with run.guarded():
                if main:
                    write_rows(run.out, rows)
    with run.guarded():
        if "rows.json" in absent and main:
            write_json(run.out / "rows.json", run.tally.account(run.source))
        if absent and main:
            write_report(run.out)
