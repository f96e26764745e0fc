import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoProcessor, CLIPModel, SiglipModel

from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.weights import load, save
from vlalign.registry import MODELS
from vlalign.types import UserError


@pytest.fixture(params=["hf_clip_id", "siglip_id"])
def id(request):
    return request.getfixturevalue(request.param)


def build(id, **fields):
    return MODELS.decode({"name": "hf_clip", "id": id, **fields}).build()


def logits(model, images, texts):
    embedder = DualEncoderEmbedder(model)
    return model.scale.exp() * embedder.encode_image(images) @ embedder.encode_text(texts).T + model.bias


def transformers_logits(folder, images, texts):
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    padding = True if model.config.model_type == "clip" else "max_length"
    inputs = processor(text=texts, images=images, padding=padding, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits_per_image


def test_logits_equal_those_of_transformers_both_ways(id, images, texts, tmp_path):
    model = build(id).eval()
    ours = logits(model, images, texts)
    torch.testing.assert_close(ours, transformers_logits(id, images, texts), rtol=1e-6, atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    save(model, tmp_path / "saved")
    ours = logits(model, images, texts)
    torch.testing.assert_close(
        ours, transformers_logits(tmp_path / "saved", images, texts), rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(
        ours, logits(load(tmp_path / "saved").model, images, texts), rtol=1e-6, atol=1e-5
    )


def test_the_family_class_loads_what_is_saved(hf_clip_id, siglip_id, tmp_path):
    for id, family in ((hf_clip_id, CLIPModel), (siglip_id, SiglipModel)):
        model = build(id)
        save(model, tmp_path / family.__name__)
        _, told = family.from_pretrained(tmp_path / family.__name__, output_loading_info=True)
        assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_a_plain_folder_of_transformers_loads(id, images, texts):
    ours = logits(load(id).model, images, texts)
    torch.testing.assert_close(ours, transformers_logits(id, images, texts), rtol=1e-6, atol=1e-5)


def test_scale_and_bias_are_the_models_own(hf_clip_id, siglip_id):
    clip, siglip = build(hf_clip_id), build(siglip_id)
    assert (
        clip.scale.item() == pytest.approx(2.6592) and clip.bias.item() == 0 and not clip.bias.requires_grad
    )
    assert siglip.scale.item() == pytest.approx(4.7651) and siglip.bias.item() == pytest.approx(-12.9)
    assert siglip.bias.requires_grad and clip.scale_max == 100.0
    siglip.clamp_scale()
    assert siglip.scale.item() == pytest.approx(4.7651)
    assert build(hf_clip_id, scale={"init": 20.0}).scale.exp().item() == pytest.approx(20.0)


def test_clip_texts_are_padded_tight_and_siglip_texts_never(hf_clip_id, siglip_id, texts):
    clip, siglip = build(hf_clip_id).eval(), build(siglip_id).eval()
    short = clip.text.process(texts[:1])["input_ids"]
    assert short.shape == (1, 7)
    padded = clip.text.process.tokenizer(texts[:1], padding="max_length", max_length=20, return_tensors="pt")
    with torch.no_grad():
        ours, full = (clip.encode_text({"input_ids": ids}) for ids in (short, padded["input_ids"]))
    torch.testing.assert_close(ours, full, rtol=0, atol=1e-6)
    inputs = siglip.text.process(texts[:1])
    assert inputs["input_ids"].shape == (1, 16) and "attention_mask" not in inputs


def test_siglip_texts_get_the_mask_that_their_tokenizer_makes(siglip_id, images, texts):
    file = Path(siglip_id) / "tokenizer_config.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"model_input_names": ["input_ids", "attention_mask"]})
    )
    model = build(siglip_id).eval()
    assert model.text.process(texts)["attention_mask"].sum(1).tolist() == [7, 16, 3, 5]
    ours, theirs = logits(model, images, texts), transformers_logits(siglip_id, images, texts)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-5)


def test_without_pretrained_weights_are_random(id):
    first, second, trained = build(id, pretrained=False), build(id, pretrained=False), build(id)
    name = next(name for name, _ in trained.named_parameters() if name.endswith("q_proj.weight"))
    weights = [model.get_parameter(name) for model in (first, second, trained)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_the_projection_is_the_top_group(hf_clip_id):
    model = build(hf_clip_id, image={"lock": True}, text={"lock": {"unlocked_groups": 1}})
    learning = {name for name, parameter in model.text.named_parameters() if parameter.requires_grad}
    assert "net.text_projection.weight" in learning and not any(".layers." in name for name in learning)
    assert model.locked == {"image"}


def test_other_models_are_refused(bert_id, tmp_path):
    with pytest.raises(UserError, match="families clip, siglip, siglip2, this one is 'bert'"):
        build(bert_id)
    with pytest.raises(UserError, match="transformers cannot build it: Unrecognized model"):
        build(str(tmp_path))


def test_a_folder_without_its_tokenizer_is_refused(hf_clip_id):
    for file in Path(hf_clip_id).glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"hf_clip: its tokenizer knows 2 tokens.*files .* are missing"):
        MODELS.decode({"name": "hf_clip", "id": hf_clip_id}).build()


def test_a_bias_that_could_not_be_saved_is_refused(hf_clip_id):
    assert build(hf_clip_id, bias={}).bias.item() == 0
    for bias in ({"learn": True}, {"init": -10.0}):
        with pytest.raises(UserError, match="family 'clip' are saved without one"):
            build(hf_clip_id, bias=bias)
