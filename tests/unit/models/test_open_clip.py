import copy
import json
import logging
from pathlib import Path

import open_clip
import pytest
import torch
from pydantic import ValidationError

from tests.unit.models.conftest import OPEN_CLIP, PREPROCESS, open_clip_folder
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.open_clip_layout import tokenizer_of
from vlalign.models.weights import load, save
from vlalign.registry import MODELS
from vlalign.types import UserError


def build(id, **fields):
    return MODELS.decode({"name": "open_clip", "id": id, **fields}).build()


def changed(**text):
    config = copy.deepcopy(OPEN_CLIP)
    config["text_cfg"] |= text
    return config


def logits(model, images, texts):
    embedder = DualEncoderEmbedder(model)
    return model.scale.exp() * embedder.encode_image(images) @ embedder.encode_text(texts).T + model.bias


def open_clip_logits(folder, images, texts):
    model, process = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        return model.eval().get_logits(torch.stack([process(image) for image in images]), tokens)[0]


CONFIGS = {
    "plain": OPEN_CLIP,
    "quick_gelu": OPEN_CLIP | {"quick_gelu": True},
    "custom_text": OPEN_CLIP | {"custom_text": True, "init_logit_bias": -10.0},
    "bidirectional": changed(no_causal_mask=True, pool_type="last") | {"custom_text": True},
    "scale_of_shape_one": OPEN_CLIP | {"nonscalar_logit_scale": True},
    "resnet": OPEN_CLIP | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}},
    "timm": OPEN_CLIP
    | {"vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}},
    "eos": changed(pool_type="eos", eos_id=49407),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_open_clip_loads_what_is_saved_with_equal_logits(tmp_path, images, texts, name):
    model = build(open_clip_folder(tmp_path / "config", CONFIGS[name])).eval()
    with torch.no_grad():
        model.scale.fill_(3.0)
        model.bias.fill_(model.bias.item() and -7.5)
    save(model, tmp_path / "saved")
    ours, theirs = logits(model, images, texts), open_clip_logits(tmp_path / "saved", images, texts)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(load(tmp_path / "saved").model, images, texts), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_we_load_what_open_clip_saves_with_equal_logits(tmp_path, images, texts, name):
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    id = open_clip_folder(tmp_path / "config", CONFIGS[name])
    theirs = open_clip.create_model(id)
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(
        {k: v.contiguous() for k, v in theirs.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    save_config_for_hf(theirs, folder / "open_clip_config.json", CONFIGS[name])
    expected = open_clip_logits(folder, images, texts)
    torch.testing.assert_close(logits(load(folder).model, images, texts), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        logits(build(f"local-dir:{folder}"), images, texts), expected, rtol=0, atol=1e-5
    )


def test_two_open_clip_towers_make_an_open_clip_model(tmp_path, images, texts, open_clip_id):
    other = open_clip_folder(
        tmp_path / "other", OPEN_CLIP | {"text_cfg": {**OPEN_CLIP["text_cfg"], "layers": 1}}
    )
    towers = {"image": {"name": "open_clip", "id": open_clip_id}, "text": {"name": "open_clip", "id": other}}
    spec = {"name": "dual_encoder", "dim": 12, "bias": {"init": -3.0}, **towers}
    model = MODELS.decode(spec).build().eval()
    assert isinstance(model.image_head, torch.nn.Identity)
    save(model, tmp_path / "saved")
    ours, theirs = logits(model, images, texts), open_clip_logits(tmp_path / "saved", images, texts)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "eos", "quick_gelu"])
def test_trimmed_texts_equal_padded_ones(tmp_path, texts, name):
    model = build(open_clip_folder(tmp_path / "config", CONFIGS[name])).eval()
    short = model.text.process(texts)["input_ids"]
    padded = model.text.process.tokenizer(texts)
    assert short.shape[1] < padded.shape[1] == 24
    with torch.no_grad():
        ours, full = model.encode_text({"input_ids": short}), model.encode_text({"input_ids": padded})
        theirs = torch.nn.functional.normalize(model.text.net(padded), dim=-1)
    torch.testing.assert_close(ours, full, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "text", [{"no_causal_mask": True}, {"pool_type": "last"}, {"embed_cls": True}, {"pool_type": "first"}]
)
def test_a_tower_that_trimming_would_change_is_never_trimmed(tmp_path, texts, text):
    model = build(open_clip_folder(tmp_path / "config", changed(**text) | {"custom_text": True})).eval()
    ids = model.text.process(texts)["input_ids"]
    assert ids.shape == (4, 24)
    with torch.no_grad():
        assert torch.equal(model.text({"input_ids": ids}), model.text.net(ids))


def test_preprocessing_is_kept(tmp_path, images, open_clip_id):
    model = build(open_clip_id, image_size=48)
    save(model, tmp_path / "saved")
    _, process = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'saved'}")
    pixels = model.image.process(images)["pixels"]
    assert pixels.shape == (4, 3, 48, 48)
    assert torch.equal(pixels, torch.stack([process(image) for image in images]))
    assert model.image.preprocess == {**PREPROCESS, "mean": PREPROCESS["mean"], "std": PREPROCESS["std"]}


def test_coca_gives_its_contrastive_half(tmp_path, images, texts):
    decoder = {"context_length": 24, "width": 32, "heads": 2, "layers": 1, "mlp_ratio": 2}
    config = changed(embed_cls=True, output_tokens=True) | {"multimodal_cfg": decoder, "custom_text": True}
    config["vision_cfg"] = {**config["vision_cfg"], "attentional_pool": True, "output_tokens": True}
    config["vision_cfg"] |= {"attn_pooler_heads": 2, "attn_pooler_queries": 4}
    model = build(open_clip_folder(tmp_path / "config", config)).eval()
    save(model, tmp_path / "saved")
    ours, theirs = logits(model, images, texts), open_clip_logits(tmp_path / "saved", images, texts)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "resnet", "timm"])
def test_groups_cover_every_parameter_once(tmp_path, name):
    model = build(open_clip_folder(tmp_path / "config", CONFIGS[name]))
    for tower in (model.image, model.text):
        parts = [part for group in tower.groups() for part in group]
        found = [
            p
            for part in parts
            for p in ([part] if isinstance(part, torch.nn.Parameter) else part.parameters())
        ]
        assert sorted(map(id, found)) == sorted(map(id, tower.parameters()))


def test_the_top_group_is_the_projection(open_clip_id):
    model = build(open_clip_id, image={"lock": {"unlocked_groups": 1}}, text={"lock": {"unlocked_groups": 2}})
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in learning if name.startswith("image.")} == {"image.net.proj"}
    text = {name.removeprefix("text.net.") for name in learning if name.startswith("text.")}
    assert text > {"text_projection", "ln_final.weight"} and "positional_embedding" not in text
    assert not any(name.startswith("transformer.resblocks.0.") for name in text)


def test_mistakes_are_sentences(tmp_path, open_clip_id):
    with pytest.raises(UserError, match="no model 'ViT-B-33'.*Did you mean 'ViT-B-32"):
        build("ViT-B-33")
    with pytest.raises(
        UserError, match="'opneai' is neither a file nor a tag of ViT-B-32.*Did you mean 'openai'"
    ):
        build("ViT-B-32", pretrained="opneai")
    with pytest.raises(UserError, match="no open_clip_config.json"):
        build(f"local-dir:{tmp_path / 'nowhere'}")
    save(build(open_clip_id), tmp_path / "saved")
    tower = {"name": "open_clip", "id": f"local-dir:{tmp_path / 'saved'}"}
    with pytest.raises(UserError, match="weights of width 16, not 8"):
        MODELS.decode({"name": "dual_encoder", "dim": 8, "image": tower, "text": tower}).build()
    with pytest.raises(ValidationError):
        MODELS.decode({"name": "open_clip", "id": open_clip_id, "image": {"locked": True}})


def test_a_config_may_not_run_code_with_its_tokenizer(tmp_path, bert_id):
    ran = tmp_path / "ran"
    (Path(bert_id) / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    settings = Path(bert_id) / "tokenizer_config.json"
    told = json.loads(settings.read_text()) | {
        "tokenizer_class": "Evil",
        "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    }
    settings.write_text(json.dumps(told))
    trusting = changed(hf_tokenizer_name="someone/else", tokenizer_kwargs={"trust_remote_code": True})
    with pytest.raises(UserError, match="wants to run code that comes with its tokenizer"):
        build(open_clip_folder(Path(bert_id), trusting))
    tokenizer_of(f"local-dir:{bert_id}", trusting)  # were it not refused above
    assert not ran.exists()


def test_weights_that_cannot_be_fetched_are_told_and_never_left_random(monkeypatch, tmp_path, open_clip_id):
    def offline(*_, **__):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(UserError, match="ViT-B-32 openai: open_clip cannot build it: .*no network"):
        build("ViT-B-32", pretrained="openai")
    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", offline)
    with pytest.raises(UserError, match="hf-hub:a/b: open_clip finds it neither on this machine"):
        build("hf-hub:a/b")
    config = Path(open_clip_id.removeprefix("local-dir:")) / "open_clip_config.json"

    def config_only(id, filename=None, **_):
        return str(config) if filename else offline()

    monkeypatch.setattr(open_clip.factory, "download_pretrained_from_hf", config_only)
    with pytest.raises(UserError, match="hf-hub:a/b: open_clip cannot build it: .*could not be loaded"):
        build("hf-hub:a/b")


def test_an_image_size_below_a_patch_is_refused(open_clip_id):
    with pytest.raises(ValueError, match="image_size must be >= 1, got 0"):
        build(open_clip_id, image_size=0)
    with pytest.raises(UserError, match="patches of 16 pixels, got 15"):
        build(open_clip_id, image_size=15)


def test_a_pretrained_file_that_is_no_checkpoint_is_told(tmp_path):
    (tmp_path / "note.txt").write_text("words")
    with pytest.raises(UserError, match="note.txt: this file is no checkpoint") as told:
        build("ViT-B-32", pretrained=str(tmp_path / "note.txt"))
    assert "weights_only" not in str(told.value)


def test_random_weights_on_purpose_are_no_warning(open_clip_id, caplog):
    build(open_clip_id)
    assert not caplog.records and not logging.getLogger().filters
