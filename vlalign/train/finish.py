"""The outputs of a run that has done its steps; those that are there stay."""

from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.files import write_json
from vlalign.models.weights import save as save_model
from vlalign.train.folder import missing, writing
from vlalign.train.run import Run


def finish(run: Run) -> None:
    """Write what is missing of metrics, counts of rows, model and report; every process calls it.

    Raises UserError for what the disk refuses.
    """
    absent = run.runtime.gather(missing(run.out))[0]
    with run.averaged():
        if "metrics.json" in absent or "exhibits.json" in absent:
            rows = run.measure(run.recipe.evals, run.recipe.steps)
            if run.runtime.main:
                with writing(run.out):
                    write_rows(run.out, rows)
        with run.runtime.whole() as model:
            if "model" in absent and run.runtime.main:
                with writing(run.out):
                    save_model(model, run.out / "model")
    if run.runtime.main:
        with writing(run.out):
            if "rows.json" in absent:
                write_json(run.out / "rows.json", run.tally.account(run.source))
            if absent:
                write_report(run.out)
    run.runtime.meet()
