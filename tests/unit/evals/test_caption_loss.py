import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

import vlalign
from tests.multimodal_models import multimodal_model
from tests.unit.data.json_lines import lines
from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators import caption_loss
from vlalign.evals.evaluators.caption_loss import CaptionLoss
from vlalign.evals.evaluators.reranking import Reranking
from vlalign.evals.evaluators.retrieval import Retrieval
from vlalign.infer.evaluate import evaluate
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.weights import save
from vlalign.recipe.offline import EvalRecipe
from vlalign.recipe.schemas import TrainRecipe
from vlalign.registry import MODELS, SOURCES, encode, strict
from vlalign.types import DataError, Limits, UserError

NAMES = list(COLOURS)


class Sees:
    """Loses 1 at each word of a caption, and 2 more where the picture is of another colour."""

    def caption(self, images):
        raise NotImplementedError

    def losses(self, images, captions):
        self.shown = [image.getpixel((0, 0)) for image in images]
        return [
            torch.full((len(caption.split()),), 1.0 + 2 * (COLOURS[caption.split()[0]] != shown))
            for shown, caption in zip(self.shown, captions, strict=True)
        ]


def rows(count, bad=0):
    """Colours by turns, with captions of one to three words."""
    told = [
        {"image": COLOURS[NAMES[i % 4]], "captions": (f"{NAMES[i % 4]}{' word' * (i % 3)}", "other")}
        for i in range(count)
    ]
    return Rows([*told, *[{"image": None, "captions": ("red",)}] * bad])


def measured(source, model=None, **fields):
    [row] = CaptionLoss(data=Spec(source), dataset="fake", **fields)(model or Sees(), Limits())
    return row


def test_the_mean_is_over_tokens_and_stands_beside_other_pictures():
    row = measured(rows(12, bad=3))
    assert (row.dataset, row.task) == ("fake", "caption_loss")
    assert row.metrics["loss"] == pytest.approx(1) and row.metrics["perplexity"] == pytest.approx(math.e)
    permuted = row.metrics["permuted_loss"]
    assert 1 < permuted <= 3
    assert row.chance == {"loss": permuted, "perplexity": pytest.approx(math.exp(permuted))}
    account = row.exhibits["rows"]
    assert (account["used"], account["skipped"], account["tokens"]) == (12, {"truncated": 3}, 4 * (1 + 2 + 3))


@pytest.mark.parametrize("count", [2, 3, 5, 6, 7, 8, 13])
def test_every_row_is_measured_once_and_never_beside_its_own_picture(count, monkeypatch):
    monkeypatch.setattr(caption_loss, "TOGETHER", 4)
    told = [{"image": (i, 9, 9), "captions": (f"{i}",)} for i in range(count)]
    seen = []

    class Remembers(Sees):
        def losses(self, images, captions):
            shown = [image.getpixel((0, 0))[0] for image in images]
            seen.extend(zip(shown, map(int, captions), strict=True))
            return [torch.ones(1) for _ in captions]

    measured(Rows(told), Remembers(), seed=1)
    own = [pair for pair in seen if pair[0] == pair[1]]
    other = [pair for pair in seen if pair[0] != pair[1]]
    assert sorted(own) == [(i, i) for i in range(count)]
    assert sorted(shown for shown, _ in other) == sorted(text for _, text in other) == list(range(count))


def test_samples_are_drawn_by_the_seed():
    assert measured(rows(200), samples=10).exhibits["rows"]["used"] == 10
    losses = [measured(rows(200), samples=10, seed=seed).metrics["permuted_loss"] for seed in (0, 0, 1, 2)]
    assert losses[0] == losses[1] and len(set(losses)) > 1


def test_one_row_and_other_models_are_refused():
    with pytest.raises(DataError, match="fake has 1 rows that can be read; caption_loss needs two"):
        measured(rows(1, bad=2))
    with pytest.raises(UserError, match="the model writes no captions; name a captioner"):
        measured(rows(4), ColourModel())
    for fields in ({"samples": 1}, {"every": -1}):
        with pytest.raises(ValueError, match="must be >="):
            measured(rows(4), **fields)


def test_of_a_captioner_it_is_what_its_scores_say(tmp_path):
    told = {"name": "captioner", "id": str(multimodal_model(tmp_path / "vl", "llava")), "length": 100}
    writer = CaptionWriter(MODELS.decode(told).build())
    source = rows(8)
    row = measured(source, writer)
    samples = [source[index] for index in range(8)]
    losses = writer.losses([each["image"] for each in samples], [each["captions"][0] for each in samples])
    assert row.metrics["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert row.exhibits["rows"]["tokens"] == len(torch.cat(losses))
    assert writer.model.training  # as it was


@pytest.fixture
def recipe(tmp_path):
    """A captioner on disk, pictures with captions, and pictures as queries with captions to rank."""
    told, asked = [], []
    for place, name in enumerate(NAMES):
        Image.new("RGB", (40, 40), COLOURS[name]).save(tmp_path / f"{name}.png")
        told.append({"image": f"{name}.png", "caption": f"a {name} car"})
        candidates = [{"text": f"a {other} car", "label": int(other == name)} for other in NAMES]
        asked.append({"id": f"q{place}", "query": {"image": f"{name}.png"}, "candidates": candidates})
    data = {"name": "jsonl", "path": str(lines(tmp_path / "pairs.jsonl", *told))}
    queries = {"name": "candidates", "path": str(lines(tmp_path / "queries.jsonl", *asked))}
    model = {"name": "captioner", "id": str(multimodal_model(tmp_path / "vl", "llava")), "length": 100}
    save(MODELS.decode(model).build(), tmp_path / "model")
    return EvalRecipe(
        verb="eval",
        out=str(tmp_path / "out"),
        model=str(tmp_path / "model"),
        evals=(
            CaptionLoss(data=SOURCES.decode(data), dataset="captions"),
            Reranking(data=SOURCES.decode(queries), dataset="queries", metrics=("P@1",)),
        ),
    )


def test_a_saved_captioner_is_measured_and_ranks_unseen(recipe):
    captions, queries = json.loads((evaluate(recipe) / "metrics.json").read_text())
    assert captions["task"] == "caption_loss" and captions["metrics"]["loss"] > 0
    assert queries["dataset"] == "queries" and 0 <= queries["metrics"]["P@1"] <= 1
    model = vlalign.load(recipe.model)
    pictures = [Path(recipe.model).parent / f"{name}.png" for name in NAMES]
    texts = [f"a {name} car" for name in NAMES]
    right = [int(scores.argmax()) == place for place, scores in enumerate(model.score(pictures, [texts] * 4))]
    assert queries["metrics"]["P@1"] == pytest.approx(sum(right) / 4)


def test_what_cannot_be_asked_is_refused(recipe):
    data = recipe.evals[0].data
    with pytest.raises(UserError, match="evals.0: retrieval is for pairs"):
        evaluate(replace(recipe, evals=(Retrieval(data=data, dataset="r"),)))
    with pytest.raises(UserError, match="the model writes no captions"):
        evaluate(
            replace(recipe, model="recipes/tiny/open_clip", evals=recipe.evals[:1], out=recipe.out + "2")
        )
    with pytest.raises(ValueError, match="data must be pictures with captions"):
        CaptionLoss(data=recipe.evals[1].data, dataset="x")


def train(recipe, **fields):
    told = {
        "verb": "train", "out": "out", "data": {"train": encode(recipe.evals[0].data, True), "batch": 2},
        "model": {"name": "captioner", "id": recipe.model}, "steps": 1,
        "optim": {"name": "adamw", "lr": 1e-3}, "schedule": "cosine",
        "task": {"name": "generate", "token_terms": [{"objective": "cross_entropy"}]},
    }  # fmt: skip
    return TypeAdapter(strict(TrainRecipe)).validate_json(json.dumps(told | fields), strict=True)


def test_a_recipes_parts_agree(recipe):
    """A task of captions reads pairs, and its model is measured as a captioner or as a reranker."""
    own, ranks = (encode(each, True) for each in recipe.evals)
    assert len(train(recipe, evals=[own, ranks]).evals) == 2
    refused = {
        "data.train: candidates is for candidates, and the task generate reads captions": {
            "data": {"train": encode(recipe.evals[1].data, True), "batch": 2}
        },
        "model: llm_reranker is for candidates, and the task generate": {
            "model": {"name": "llm_reranker", "id": "x"}
        },
        "evals.0: retrieval is for pairs": {
            "evals": [{"name": "retrieval", "data": own["data"], "dataset": "r"}]
        },
        "model: captioner is for captions, and the task rerank reads candidates": {
            "task": {"name": "rerank", "terms": [{"objective": "info_nce"}]}
        },
        "compile is for pairs": {"compile": True},
    }
    for sentence, fields in refused.items():
        with pytest.raises(ValidationError, match=sentence):
            train(recipe, **fields)
