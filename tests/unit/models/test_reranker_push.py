"""A reranker saved, pushed and loaded again by its id, whole or as an adapter alone; its card's code runs."""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from PIL import Image
from safetensors.torch import load_file, save_file

import vlalign
from tests.hub_server import Hub, serving
from tests.language_models import language_model
from tests.multimodal_models import multimodal_model, picture
from tests.unit.models.test_cross_encoder import folder_of
from vlalign.cli.push import push as command
from vlalign.models.hub import push
from vlalign.models.parcel import PushError
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.models.weights import initialise, save
from vlalign.registry import MODELS
from vlalign.types import Item, UserError

QUERIES = ["a red car", "the small cat"]
CANDIDATES = [["a red car near a tree", "a cat", "a dog in the house " * 9], ["a cat", "the small cat"]]
LORA = {"rank": 2, "alpha": 8.0}
TOKENIZER = ["tokenizer.json", "tokenizer_config.json"]
CROSSED = [
    "1_LogitScore/config.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
]
ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
ALONE = sorted(["README.md", "vlalign.json", *TOKENIZER, *CROSSED, *ADAPTER])
WHOLE = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "vlalign.json",
    *TOKENIZER,
    *CROSSED,
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With a language model on it, `me/base`."""
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it keeps its first address
    with serving(tmp_path, monkeypatch) as server:
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)  # and so does PEFT's
        upload(server, "me/base", language_model(tmp_path / "base"))
        yield server


def upload(hub: Hub, repo: str, folder: Path) -> None:
    api = HfApi(endpoint=hub.url)
    api.create_repo(repo, private=True, exist_ok=True)
    api.upload_folder(repo_id=repo, folder_path=folder)


def learnt(**fields: Any) -> Any:
    """A reranker of texts whose every learning weight is another than at first."""
    told = {"name": "llm_reranker", "id": "me/base", "prompt": "qwen3_reranker", "length": 256}
    return perturbed(told | fields)


def perturbed(told: dict[str, Any]) -> Any:
    model = MODELS.decode(told).build()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def scores(model: Any) -> torch.Tensor:
    return torch.cat(model.score(QUERIES, CANDIDATES))


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Up to rounding, as weights and adapters beside each other are rounded otherwise than added up."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=2e-5)


def equal(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of the same weights; where they lie in memory may change the last digit."""
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def blocks(text: str) -> dict[str, str]:
    """The card's code, by the package that it is about."""
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = ("import vlalign", "CrossEncoder", "import torch")
    return {name: next((code for code in found if name in code), "") for name in names}


def ran(code: str) -> dict[str, Any]:
    space: dict[str, Any] = {}
    exec(code, space)
    return space


@pytest.mark.parametrize("fields", [{}, {"lora": LORA}, {"layer": 2}, {"lora": LORA, "layer": 2}], ids=str)
def test_the_merged_weights_reload_by_id_with_equal_scores(hub, tmp_path, fields):
    model = learnt(**fields)
    save(model, tmp_path / "model")
    sent = [name for name, _ in push(tmp_path / "model", "me/reranker")]
    adapter = [f"adapter/{name}" for name in ADAPTER] if "lora" in fields else []
    assert sent == sorted([*WHOLE, *adapter]) == sorted(hub.repos["me/reranker"].files)
    found = scores(vlalign.load("me/reranker", device="cpu"))
    same(found, scores(RerankScorer(model)))
    equal(found, scores(vlalign.load(tmp_path / "model", device="cpu")))
    assert found.std() > 0.1


@pytest.mark.parametrize("fields", [{}, {"layer": 2}, {"dtype": "bfloat16"}], ids=str)
def test_an_adapter_alone_finds_its_base_as_it_was(hub, tmp_path, fields):
    save(learnt(lora=LORA, **fields), tmp_path / "model")
    revision = hub.repos["me/base"].head
    assert [name for name, _ in push(tmp_path / "model", "me/lora", adapter=True)] == ALONE
    told = json.loads(hub.read("me/lora", "adapter_config.json"))
    assert (told["base_model_name_or_path"], told["revision"]) == ("me/base", revision)
    upload(hub, "me/base", language_model(tmp_path / "other", seed=1))  # the base goes on
    assert hub.repos["me/base"].head != revision
    found = scores(vlalign.load("me/lora", device="cpu"))
    equal(found, scores(vlalign.load(tmp_path / "model", device="cpu")))
    before = hub.repos["me/lora"].head
    push(tmp_path / "model", "me/lora")  # the whole over it: what is left of the adapter would mislead
    assert sorted(hub.repos["me/lora"].files) == sorted([*WHOLE, *(f"adapter/{name}" for name in ADAPTER)])
    equal(scores(vlalign.load("me/lora", revision=before, device="cpu")), found)


@pytest.mark.parametrize("prompt", ["qwen3_reranker", "bge_gemma"])
@pytest.mark.parametrize("alone", [False, True])
def test_the_code_on_the_card_gives_these_scores(hub, tmp_path, alone, prompt):
    model = learnt(lora=LORA, prompt=prompt)
    save(model, tmp_path / "model")
    push(tmp_path / "model", "me/reranker", adapter=alone)
    [expected] = RerankScorer(model).score(["a red car"], [["a red car near a tree", "a cat"]])
    code = blocks(hub.read("me/reranker", "README.md").decode())
    same(ran(code["import vlalign"])["scores"], expected)
    same(torch.from_numpy(ran(code["CrossEncoder"])["scores"]), expected)
    assert ("AutoPeftModel" in code["import torch"]) == alone
    same(ran(code["import torch"])["score"], expected[0])


OTHERS = {
    "mllm_reranker": (multimodal_model, {"prompt": "qwen3_vl_reranker", "length": 400}),
    "cross_encoder": (partial(folder_of, kind="Model"), {"length": 60}),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("alone", [False, True])
def test_rerankers_of_other_kinds_go_the_same_way(hub, tmp_path, monkeypatch, alone, name):
    make, fields = OTHERS[name]
    upload(hub, "me/other", make(tmp_path / "other"))
    model = perturbed({"name": name, "id": "me/other", "lora": LORA, **fields})
    save(model, tmp_path / "model")
    push(tmp_path / "model", "me/reranker", adapter=alone)
    equal(*(scores(vlalign.load(it, device="cpu")) for it in ("me/reranker", tmp_path / "model")))
    candidates = ["a red car near a tree", "a cat"]
    if name == "mllm_reranker":
        monkeypatch.chdir(tmp_path)
        picture(1).save("photo.jpg")
        candidates.append(Item(images=(Image.open("photo.jpg"),)))
    [expected] = RerankScorer(model).score(["a red car"], [candidates])
    code = blocks(hub.read("me/reranker", "README.md").decode())
    theirs = torch.from_numpy(ran(code["CrossEncoder"])["scores"])
    for found in (ran(code["import vlalign"])["scores"], theirs):
        same(found[:2], expected[:2])
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)  # rounding grows over a picture
    same(ran(code["import torch"])["score"], expected[0])


def test_one_of_a_part_of_the_layers_is_shown_to_no_library_that_would_take_all(hub, tmp_path):
    save(learnt(lora=LORA, layer=2), tmp_path / "model")
    push(tmp_path / "model", "me/reranker", adapter=True)
    code = blocks(hub.read("me/reranker", "README.md").decode())
    assert code["import vlalign"] and not code["CrossEncoder"] and not code["import torch"]


def test_a_model_that_began_as_another_names_that_one(hub, tmp_path):
    """Under its adapter lie the other's weights, not those that its recipe's `id` names."""
    save(learnt(), tmp_path / "first")
    push(tmp_path / "first", "me/first")
    model = learnt(lora=LORA)
    initialise(model, "me/first")
    save(model, tmp_path / "second")
    push(tmp_path / "second", "me/second", adapter=True)
    assert json.loads(hub.read("me/second", "adapter_config.json"))["base_model_name_or_path"] == "me/first"
    same(scores(vlalign.load("me/second", device="cpu")), scores(RerankScorer(model)))
    initialise(model, tmp_path / "first")
    save(model, tmp_path / "third")
    with pytest.raises(PushError, match="its adapter lies on weights that did not come from the Hub"):
        push(tmp_path / "third", "me/third", adapter=True)


def test_what_has_no_adapter_of_its_own_is_told(hub, tmp_path):
    save(learnt(), tmp_path / "whole")
    with pytest.raises(PushError, match="it has no adapter/, so it has no adapter of its own; push it whole"):
        push(tmp_path / "whole", "me/whole", adapter=True, dry_run=True)
    save(learnt(lora=LORA, id=str(tmp_path / "base")), tmp_path / "here")
    assert "base" not in json.loads((tmp_path / "here/vlalign.json").read_text())
    with pytest.raises(PushError, match="its adapter lies on weights that did not come from the Hub"):
        push(tmp_path / "here", "me/here", adapter=True, dry_run=True)
    model = learnt(lora=LORA)
    model.net.get_decoder().norm.requires_grad_(True)
    save(model, tmp_path / "more")
    with pytest.raises(PushError, match="or more was learned beside it"):
        push(tmp_path / "more", "me/more", adapter=True, dry_run=True)


def test_an_adapter_that_cannot_be_put_on_its_base_is_told(hub, tmp_path):
    save(learnt(lora=LORA), tmp_path / "model")
    adapter = tmp_path / "model" / "adapter"
    with pytest.raises(UserError, match="this is an adapter alone, and nothing in it tells what it is asked"):
        vlalign.load(adapter)
    (adapter / "vlalign.json").write_bytes((tmp_path / "model/vlalign.json").read_bytes())
    assert len(scores(vlalign.load(adapter, device="cpu"))) == 5
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: x[:, :-1].clone() for name, x in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="this adapter does not fit its base model"):
        vlalign.load(adapter)
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"r": 0}))
    with pytest.raises(UserError, match="this adapter does not fit its base model: float division by zero"):
        vlalign.load(adapter)
    for name, sentence in {
        "me/gone": "it is an adapter on me/gone at revision None: me/gone: neither a folder nor",
        str(adapter): "it is no model of transformers",
        "": "nothing in it tells its base model",
    }.items():
        changed = told | {"base_model_name_or_path": name, "revision": None}
        (adapter / "adapter_config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=re.escape(sentence)):
            vlalign.load(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"its adapter_config\.json cannot be read"):
        vlalign.load(adapter)


def test_the_command_pushes_an_adapter_and_shows_no_token(hub, tmp_path, capsys):
    save(learnt(lora=LORA), tmp_path / "model")
    recipe = tmp_path / "push.yaml"
    recipe.write_text(f"verb: push\nmodel: {tmp_path / 'model'}\nrepo: me/lora\nadapter: true\n")
    command(recipe)
    told = capsys.readouterr()
    assert "went to me/lora (private)" in told.out and hub.token not in told.out + told.err
    assert sorted(hub.repos["me/lora"].files) == ALONE
    assert not any(hub.token.encode() in hub.read("me/lora", name) for name in ALONE)
