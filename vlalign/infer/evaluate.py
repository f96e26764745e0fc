"""Measure a saved model, or several joined ones, with the evaluators of a recipe."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlalign.evals.report.page import write as write_report
from vlalign.evals.rows import write_rows
from vlalign.files import cache_folder
from vlalign.infer.load import load
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.ensemble import Ensemble
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.pair import SIDES
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.offline import EvalRecipe
from vlalign.recipe.reads import PAIRS, reads
from vlalign.registry import name_of
from vlalign.specs import Evaluator
from vlalign.types import Limits, UserError


def evaluate(recipe: EvalRecipe) -> Path:
    """Write `out/{recipe.yaml, metrics.json, exhibits.json, report.html}`; returns `out`.

    What this recipe left there before is replaced. What the towers give is kept in the user's cache: the same
    weights cost little more than decoding to measure again. Raises RecipeError where `out` is another
    recipe's, UserError where it cannot be written.
    """
    out = claim(recipe)
    names = [recipe.model] if isinstance(recipe.model, str) else recipe.model
    stages: list[Any] = [load(name) for name in names]
    for name, stage in zip(names, stages, strict=True):
        if isinstance(stage, RerankScorer):
            _refuse_pairs(recipe, name, captions=isinstance(stage, CaptionWriter))
        elif recipe.feature_cache:
            keep_features(stage)
    measure(stages[0] if len(stages) == 1 else Ensemble(stages), recipe.evals, recipe.limits, out)
    return out


def _refuse_pairs(recipe: EvalRecipe, name: str, captions: bool) -> None:
    """Raises UserError for what cannot be done without embeddings, by a reranker or what writes captions."""
    kind, its = ("captioner", "caption_loss") if captions else ("reranker", "reranking")
    if not isinstance(recipe.model, str) and len(recipe.model) > 1:
        raise UserError(f"model: {name} is a {kind}, and only dual encoders can be joined; name it alone")
    for index, evaluator in enumerate(recipe.evals):
        if reads(evaluator) == PAIRS:
            raise UserError(
                f"evals.{index}: {name_of(type(evaluator))} is for pairs, and {name} is a {kind}; name an "
                f"evaluator for it, such as {its}, or a dual encoder"
            )


def keep_features(model: DualEncoderEmbedder) -> None:
    """Keep what the towers give in the user's cache, and take it from there."""
    towers, folder = map(model.model.tower, SIDES), cache_folder() / "features"
    model.caches = {side: FeatureCache.of(tower, folder) for side, tower in zip(SIDES, towers, strict=True)}


def measure(model: Any, evals: Sequence[Evaluator], limits: Limits, out: Path) -> None:
    """Write `out/{metrics.json, exhibits.json, report.html}`. `model`: what `evals` ask. Raises UserError."""
    rows = [row for evaluator in evals for row in evaluator(model, limits)]
    with writing(out):
        write_rows(out, rows)
        write_report(out)
