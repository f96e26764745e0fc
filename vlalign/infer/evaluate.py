"""Measure a saved model with the evaluators of a recipe."""

from pathlib import Path

from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.infer.load import load
from vlalign.recipe.decode import write
from vlalign.recipe.schemas import EvalRecipe


def evaluate(recipe: EvalRecipe) -> Path:
    """Write `out/{recipe.yaml, metrics.json, exhibits.json, report.html}`; returns `out`."""
    out = Path(recipe.out)
    model = load(recipe.model)
    write(recipe, out)
    write_rows(out, [row for evaluator in recipe.evals for row in evaluator(model, recipe.limits)])
    write_report(out)
    return out
