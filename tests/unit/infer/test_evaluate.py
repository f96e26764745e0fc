"""Whose folder an evaluation writes to, and what it need not compute again."""

import errno
import json
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlalign
from tests import language_models, multimodal_models
from vlalign.data.sources.candidates import CandidatesFile
from vlalign.data.sources.jsonl import JsonLines
from vlalign.evals.evaluators.embedding_health import EmbeddingHealth
from vlalign.evals.evaluators.reranking import Reranking
from vlalign.evals.evaluators.retrieval import Retrieval
from vlalign.evals.evaluators.zero_shot import ZeroShot
from vlalign.infer import evaluate as module
from vlalign.infer.evaluate import evaluate
from vlalign.models import weights
from vlalign.models.open_clip_towers import OpenClipImage, OpenClipText
from vlalign.recipe.offline import EvalRecipe
from vlalign.registry import MODELS
from vlalign.specs import EvalRow
from vlalign.types import RecipeError, UserError


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
    out = str(tmp_path / "out")
    one = EvalRecipe(verb="eval", out=out, model="a model", evals=(Counts(),), feature_cache=False)
    for _ in range(2):  # the same recipe may measure again
        assert evaluate(one) == Path(one.out) and (Path(one.out) / "report.html").exists()
    before = (Path(one.out) / "metrics.json").read_bytes()
    with pytest.raises(
        RecipeError, match=r"holds a run of another recipe(.|\n)*model: 'a model' there, 'b' here"
    ):
        evaluate(replace(one, model="b"))
    assert loaded == ["a model", "a model"] and (Path(one.out) / "metrics.json").read_bytes() == before


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Two evaluators of one model over eight pictures."""
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    noise, lines = np.random.default_rng(0), []
    for row in range(8):
        name = f"{row}.png"
        Image.fromarray(noise.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / name)
        lines.append(json.dumps({"image": name, "caption": f"number {row}", "label": "ab"[row % 2]}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    weights.save(vlalign.load("recipes/tiny/open_clip").model, tmp_path / "model")
    data = JsonLines(path=str(tmp_path / "rows.jsonl"), label="label")
    evals = (Retrieval(data=data, dataset="r"), ZeroShot(data=data, dataset="z", classes=("a", "b")))
    return EvalRecipe(verb="eval", out=str(tmp_path / "out"), model=str(tmp_path / "model"), evals=evals)


@pytest.fixture
def ran(monkeypatch):
    """How many rows went through each kind of tower."""
    counts = {"image": 0, "text": 0}
    for kind, reads, side in ((OpenClipImage, "pixels", "image"), (OpenClipText, "input_ids", "text")):

        def counting(self, inputs, forward=kind.forward, reads=reads, side=side):
            counts[side] += len(inputs[reads])
            return forward(self, inputs)

        monkeypatch.setattr(kind, "forward", counting)
    return counts


def measured(recipe):
    return (evaluate(recipe) / "metrics.json").read_bytes()


def test_equal_weights_are_measured_again_without_running(recipe, ran):
    first = measured(recipe)
    assert ran == {"image": 8, "text": 10}  # the second evaluator has the first one's pictures
    assert measured(recipe) == first == measured(replace(recipe, out=f"{recipe.out}_elsewhere"))
    assert ran == {"image": 8, "text": 10}
    model = vlalign.load(recipe.model).model
    model.text.net.positional_embedding.data += 1
    weights.save(model, recipe.model)
    evaluate(recipe)
    assert ran == {"image": 8, "text": 20}  # the pictures' tower is the same


def test_without_a_cache_nothing_is_kept(recipe, ran, tmp_path):
    measured(replace(recipe, feature_cache=False))
    assert ran == {"image": 16, "text": 10} and not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_stops_nothing_and_is_told_once_a_side(recipe, ran, tmp_path):
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    with pytest.warns(UserWarning, match="cache/features/.*: features cannot be kept here: ") as told:
        first = measured(recipe)
    assert len([each for each in told if "cannot be kept" in str(each.message)]) == 2
    assert ran == {"image": 8, "text": 10}  # in memory they are
    (tmp_path / "cache").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measured(recipe) == first


@pytest.mark.parametrize("name", ["write_rows", "write_report"])
def test_a_full_disk_is_told_by_the_folder(tmp_path, monkeypatch, name):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "load", lambda _: None)
    monkeypatch.setattr(module, name, refuse)
    out = str(tmp_path / "out")
    recipe = EvalRecipe(verb="eval", out=out, model="a model", evals=(Counts(),), feature_cache=False)
    with pytest.raises(UserError, match="^out: .*/out cannot be written: No space left on device; put that"):
        evaluate(recipe)


def test_a_model_that_gives_no_numbers_is_told_by_every_evaluator(recipe):
    model = vlalign.load(recipe.model).model
    model.image.net.conv1.weight.data.fill_(float("nan"))
    weights.save(model, recipe.model)
    data = recipe.evals[0].data
    for evaluator in (EmbeddingHealth(data=data, dataset="h"), *recipe.evals):
        with pytest.raises(UserError, match="8 of 8 image embeddings are not finite, the image tower gives"):
            evaluate(replace(recipe, evals=(evaluator,), out=f"{recipe.out}_{evaluator.dataset}"))


@dataclass(frozen=True, kw_only=True)
class Keeps:
    """An evaluator that keeps what the model makes of two texts."""

    rows: list
    every: int = 0

    def __call__(self, model, limits):
        self.rows.append(model.encode_text(["a", "b"]))
        return []


def test_several_models_are_measured_as_one_joined_embedding(recipe, tmp_path):
    first, other = vlalign.load(recipe.model), vlalign.load(recipe.model)
    other.model.text.net.positional_embedding.data += 1
    weights.save(other.model, tmp_path / "other")
    both = (recipe.model, str(tmp_path / "other"))
    evaluate(replace(recipe, out=f"{recipe.out}_both", model=both, evals=(Keeps(rows=(rows := [])),)))
    wanted = torch.cat([each.encode_text(["a", "b"]) for each in (first, other)], dim=1) / 2**0.5
    torch.testing.assert_close(rows[0], wanted)
    alone = measured(recipe)
    for count in (1, 2):  # equal stages have the cosines of one
        assert measured(replace(recipe, out=f"{recipe.out}{count}", model=(recipe.model,) * count)) == alone
    with pytest.raises(ValueError, match="model must not be empty"):
        replace(recipe, model=())


ASKED = [("red car", "a car", ["a dog", "a car"]), ("dog", "a dog", ["a tree", "a dog"])]


@pytest.fixture
def candidates(tmp_path):
    """A file of two queries in words that a tiny tokenizer knows."""
    lines = [
        {
            "query": query,
            "candidates": [{"id": text, "text": text, "label": int(text == right)} for text in texts],
        }
        for query, right, texts in ASKED
    ]
    (tmp_path / "candidates.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return CandidatesFile(path=str(tmp_path / "candidates.jsonl"))


@pytest.fixture
def reranker(tmp_path):
    """A saved one."""
    weights.save(language_models.reranker(tmp_path / "language_model"), tmp_path / "reranker")
    return str(tmp_path / "reranker")


def test_a_reranker_is_measured_by_evaluators_of_candidates(recipe, candidates, reranker, tmp_path):
    evals = (Reranking(data=candidates, dataset="c", metrics=("RR@10",)),)
    out = evaluate(replace(recipe, model=reranker, evals=evals))
    (row,) = json.loads((out / "metrics.json").read_text())
    scorer, values = vlalign.load(reranker), []
    for query, right, texts in ASKED:
        (scores,) = scorer.score([query], [texts])
        order = sorted(texts, key=lambda text, own=dict(zip(texts, scores.tolist(), strict=True)): -own[text])
        values.append(1 / (1 + order.index(right)))
    assert row["metrics"]["RR@10"] == pytest.approx(sum(values) / 2) and row["chance"]["RR@10"] == 0.75
    assert "RR@10" in (out / "report.html").read_text() and not (tmp_path / "cache").exists()


def test_a_dual_encoder_may_rank_candidates_too(recipe, candidates):
    evals = (Reranking(data=candidates, dataset="c"), recipe.evals[0])
    ranked, found = json.loads((evaluate(replace(recipe, evals=evals)) / "metrics.json").read_text())
    assert 0.5 <= ranked["metrics"]["RR@10"] <= 1 and "text_to_image_R@1" in found["metrics"]


def test_a_reranker_has_no_embeddings_to_measure_or_to_join(recipe, candidates, reranker):
    ranks = Reranking(data=candidates, dataset="c")
    with pytest.raises(
        UserError, match=f"^evals.1: retrieval is for pairs, and {reranker} is a reranker; name an"
    ):
        evaluate(replace(recipe, model=reranker, evals=(ranks, recipe.evals[0])))
    with pytest.raises(
        UserError, match=f"^model: {reranker} is a reranker, and only dual encoders can be joined"
    ):
        evaluate(replace(recipe, out=f"{recipe.out}2", model=(recipe.model, reranker), evals=(ranks,)))


def test_a_captioner_is_called_one_where_it_is_refused(recipe, candidates, tmp_path):
    told = {"name": "captioner", "id": str(multimodal_models.multimodal_model(tmp_path / "base"))}
    weights.save(MODELS.decode(told).build(), tmp_path / "captioner")
    captioner, ranks = str(tmp_path / "captioner"), Reranking(data=candidates, dataset="c")
    sentence = (
        f"^evals.0: retrieval is for pairs, and {captioner} is a captioner; name an .* such as caption_"
    )
    with pytest.raises(UserError, match=sentence):
        evaluate(replace(recipe, model=captioner, evals=(recipe.evals[0],)))
    with pytest.raises(UserError, match=f"^model: {captioner} is a captioner, and only dual encoders can"):
        evaluate(replace(recipe, out=f"{recipe.out}2", model=(recipe.model, captioner), evals=(ranks,)))
    with pytest.raises(UserError, match="this is no dual encoder, and has no embeddings"):
        weights.load(captioner)
