"""Whose folder an evaluation writes to."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vlalign.infer import evaluate as module
from vlalign.infer.evaluate import evaluate
from vlalign.recipe.schemas import EvalRecipe
from vlalign.types import EvalRow, RecipeError


@dataclass(frozen=True, kw_only=True)
class Counts:
    """An evaluator that measures nothing."""

    value: float = 1.0
    every: int = 0

    def __call__(self, model, limits):
        return [EvalRow(dataset="toy", task="toy", metrics={"m": self.value}, chance={"m": 0.0})]


def test_another_recipes_folder_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(module, "load", loaded.append)
    one = EvalRecipe(verb="eval", out=str(tmp_path / "out"), model="a model", evals=(Counts(),))
    for _ in range(2):  # the same recipe may measure again
        assert evaluate(one) == Path(one.out) and (Path(one.out) / "report.html").exists()
    before = (Path(one.out) / "metrics.json").read_bytes()
    with pytest.raises(
        RecipeError, match=r"holds a run of another recipe(.|\n)*model: 'a model' there, 'b' here"
    ):
        evaluate(replace(one, model="b"))
    assert loaded == ["a model", "a model"] and (Path(one.out) / "metrics.json").read_bytes() == before
