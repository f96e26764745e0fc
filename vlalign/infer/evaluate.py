"""Measure a saved model with the evaluators of a recipe."""

from pathlib import Path

from vlalign.data.catalogue import cache_folder
from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.infer.load import load
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.pair import SIDES
from vlalign.recipe.folder import claim
from vlalign.recipe.schemas import EvalRecipe
from vlalign.types import UserError


def evaluate(recipe: EvalRecipe) -> Path:
    """Write `out/{recipe.yaml, metrics.json, exhibits.json, report.html}`; returns `out`.

    What this recipe left there before is replaced. What the towers give is kept in the user's cache: the same
    weights cost little more than decoding to measure again. Raises RecipeError where `out` is another
    recipe's, UserError where it cannot be written.
    """
    out = claim(recipe)
    model = load(recipe.model)
    if recipe.feature_cache:
        towers, folder = map(model.model.tower, SIDES), cache_folder() / "features"
        model.caches = {
            side: FeatureCache.of(tower, folder) for side, tower in zip(SIDES, towers, strict=True)
        }
    rows = [row for evaluator in recipe.evals for row in evaluator(model, recipe.limits)]
    try:
        write_rows(out, rows)
        write_report(out)
    except OSError as error:
        raise UserError(
            f"out: {error.filename or out} cannot be written: {error.strerror or error}; put that right, and "
            "evaluate again"
        ) from error
    return out
