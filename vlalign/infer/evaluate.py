"""Measure a saved model with the evaluators of a recipe."""

from pathlib import Path

from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.infer.load import load
from vlalign.recipe.folder import claim
from vlalign.recipe.schemas import EvalRecipe


def evaluate(recipe: EvalRecipe) -> Path:
    """Write `out/{recipe.yaml, metrics.json, exhibits.json, report.html}`; returns `out`.

    What this recipe left there before is replaced. Raises RecipeError where `out` is another recipe's.
    """
    out = claim(recipe)
    model = load(recipe.model)
    write_rows(out, [row for evaluator in recipe.evals for row in evaluator(model, recipe.limits)])
    write_report(out)
    return out
