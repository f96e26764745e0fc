"""A captioner pushed and loaded again, whole or as an adapter alone; its card is right, and its code runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import vlalign
from tests.hub_server import Hub
from tests.multimodal_models import multimodal_model, picture
from tests.unit.models.test_reranker_card import BASE, head
from tests.unit.models.test_reranker_push import blocks, equal, hub, perturbed, ran, same, upload  # noqa: F401
from vlalign.files import write_json
from vlalign.models.card import Facts, card
from vlalign.models.hub import push
from vlalign.models.parcel import PushError, collect, read_texts
from vlalign.models.weights import initialise, save
from vlalign.registry import MODELS

ASK = "What ```is``` this?"
LORA = {"rank": 2, "alpha": 8.0}
PICTURES = [picture(0), picture(1, 64, 40)]
CAPTIONS = ["a red car", "a small cat near a tree"]
RECIPE = """\
verb: train
out: runs/tiny
model: {name: captioner, id: me/vl}
data: {batch: 16, train: {name: emoji}}
task: {name: generate, token_terms: [{objective: cross_entropy}]}
steps: 400
"""
METRICS = [
    {"dataset": "emoji", "task": "caption_loss", "metrics": {"loss": 2.5}, "chance": {"loss": 3.0}},
]


def learnt(**fields: Any) -> Any:
    """A captioner whose every learning weight is another than at first."""
    return perturbed({"name": "captioner", "length": 200, "ask": ASK, **fields})


def losses(model: Any) -> torch.Tensor:
    return torch.cat(model.losses(PICTURES, CAPTIONS))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph where the code of a card is run."""
    picture(5).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shared(hub: Hub, tmp_path: Path) -> Hub:  # noqa: F811
    """With a multimodal model besides, `me/vl`."""
    upload(hub, "me/vl", multimodal_model(tmp_path / "vl"))
    return hub


@pytest.mark.usefixtures("here")
def test_the_whole_is_indexed_by_its_base_and_loads_by_its_id(shared: Hub, tmp_path: Path) -> None:
    save(learnt(id="me/vl", learn=["projector", "language"], lora=LORA), tmp_path / "model")
    push(tmp_path / "model", "me/captioner", licence="mit")
    text = shared.read("me/captioner", "README.md").decode()
    told = head(text)
    assert (told["pipeline_tag"], told["library_name"]) == ("image-to-text", "transformers")
    assert (told["base_model"], told["base_model_relation"]) == ("me/vl", "finetune")
    assert told["tags"] == ["vlalign", "captioner", "image-captioning", "peft", "lora"]
    assert f"`me/vl` at revision `{shared.repos['me/vl'].head}`" in text and f"````text\n{ASK}\n````" in text
    assert "encode_image" not in text and "`AutoModelForImageTextToText` and `AutoProcessor`" in text
    found = vlalign.load("me/captioner", device="cpu")
    same(losses(found), losses(vlalign.load(tmp_path / "model", device="cpu")))
    space = ran(blocks(text)["import vlalign"])
    assert space["caption"] == found.caption(["photo.jpg"])[0] and len(space["scores"]) == 2


@pytest.mark.usefixtures("here")
def test_one_of_parts_names_them_and_the_language_model_as_its_base(shared: Hub, tmp_path: Path) -> None:
    made = {"language": "me/base", "tower": "test_efficientnet", "image_size": 64}
    save(learnt(made=made, learn=["language"], lora=LORA), tmp_path / "model")
    push(tmp_path / "model", "me/captioner")
    text = shared.read("me/captioner", "README.md").decode()
    told = head(text)
    assert (told["base_model"], told["library_name"]) == ("me/base", "vlalign")
    assert f"language model `me/base` at revision `{shared.repos['me/base'].head}`\n" in text
    assert "- the tower `test_efficientnet`, its weights random at first\n" in text
    assert "no other library loads it" in text and "AutoModelForImageTextToText" not in text
    assert ran(blocks(text)["import vlalign"])["caption"] is not None
    with pytest.raises(PushError, match="its adapter lies on weights that did not come from the Hub"):
        push(tmp_path / "model", "me/lora", adapter=True, dry_run=True)


def test_an_adapter_alone_finds_its_base(shared: Hub, tmp_path: Path) -> None:
    save(learnt(id="me/vl", learn=["language"], lora=LORA), tmp_path / "model")
    sent = [name for name, _ in push(tmp_path / "model", "me/lora", adapter=True)]
    assert "adapter_model.safetensors" in sent and "model.safetensors" not in sent
    told = head(text := shared.read("me/lora", "README.md").decode())
    assert (told["library_name"], told["base_model_relation"]) == ("peft", "adapter")
    assert "on top of `me/vl`, of which vlalign loads the revision named below" in text
    equal(*(losses(vlalign.load(it, device="cpu")) for it in ("me/lora", tmp_path / "model")))
    save(learnt(id="me/vl", learn=["language", "projector"], lora=LORA), tmp_path / "more")
    with pytest.raises(PushError, match="or more was learned beside it"):
        push(tmp_path / "more", "me/more", adapter=True, dry_run=True)


def test_an_adapter_on_a_model_of_parts_that_began_as_another(shared: Hub, tmp_path: Path) -> None:
    made = {"language": "me/base", "tower": "test_efficientnet", "image_size": 64}
    save(learnt(made=made), tmp_path / "first")
    push(tmp_path / "first", "me/first")
    told = {"name": "captioner", "length": 200, "ask": ASK, "made": made, "learn": ["language"], "lora": LORA}
    second = MODELS.decode(told).build()
    initialise(second, "me/first")
    save(second, tmp_path / "second")
    push(tmp_path / "second", "me/second", adapter=True)
    equal(*(losses(vlalign.load(it, device="cpu")) for it in ("me/second", tmp_path / "first")))


def test_people_read_how_it_was_taught_and_measured(tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(learnt(id=str(multimodal_model(tmp_path / "base"))), out / "model")
    (out / "recipe.yaml").write_text(RECIPE)
    write_json(out / "metrics.json", METRICS)
    files = collect(out)
    text = card(Facts.read("me/tiny", out, [*files, "README.md"], read_texts(files), "apache-2.0"))
    assert "A captioner trained with vlalign; `captioner` (me/vl); 400 steps of 16 pairs; " in text
    assert "objective `cross_entropy`." in text and "| emoji | caption_loss | loss | 2.5 | 3 |" in text
    assert "base_model" not in text.split("---\n")[1] and "What it was made from" not in text
    assert ModelCard(text).data.eval_results[0].metric_value == 2.5 and str(tmp_path) not in text
    manifest = out / "model" / "vlalign.json"
    write_json(manifest, json.loads(manifest.read_text()) | {"base": BASE})
    text = card(Facts.read("me/tiny", out, list(files), read_texts(files), "apache-2.0"))
    assert head(text)["base_model"] == "me/base"
