"""Weights: which of them decay, and what becomes of them on the way to other libraries and back."""

import json

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import nn

from tests.traps.cases import LOCKED
from tests.unit.models.conftest import OPEN_CLIP, PREPROCESS, open_clip_folder
from tests.unit.models.test_hf_clip import transformers_logits
from tests.unit.models.test_open_clip import logits, open_clip_logits
from vlalign.models.encoders.hf_clip import HFClip
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.pair import Bias
from vlalign.models.weights import load, save
from vlalign.train.optimizers.adamw import AdamW
from vlalign.types import UserError

OFFSETS = ("class_embedding", "position", "cls_token", "pos_embed")


@pytest.mark.parametrize("kind", ["open_clip", "hf_clip_id", "siglip_id"])
def test_15_weight_decay_leaves_out(tmp_path, request, kind):
    """Decay pulls norms to zero, and the scale to a temperature of one: here a step without gradients moves
    the matrices alone, not norms, biases, scale, bias, class tokens or positions."""
    id = open_clip_folder(tmp_path) if kind == "open_clip" else request.getfixturevalue(kind)
    spec = OpenClip if kind == "open_clip" else HFClip
    bias = None if kind == "hf_clip_id" else Bias(init=-1.0, learn=True)  # that family has none
    model = spec(id=id, bias=bias).build()
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for part in ("weight", "bias")
    }
    before = {}
    for name, parameter in model.named_parameters():
        if not parameter.any():
            nn.init.constant_(parameter, 0.5)  # zero has nothing to lose
        parameter.grad, before[name] = torch.zeros_like(parameter), parameter.detach().clone()
    AdamW(lr=0.1, weight_decay=0.2).build(model).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    kept = norms | {name for name in before if name.endswith("bias") or any(it in name for it in OFFSETS)}
    matrices = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    matrices |= {name for name in before if "token_embedding" in name}
    assert not moved & (kept | {"scale", "bias"}) and matrices <= moved
    assert len(norms) > 8 and len(kept - norms) > 12 and len(matrices) > 8


@pytest.mark.parametrize("kind", ["open_clip", "hf_clip_id", "siglip_id"])
def test_25_saved_for_others(tmp_path, request, images, texts, kind):
    """Weights saved under names of one's own are lost to everybody else: here open_clip and transformers
    load what is saved and give the same logits, and so do we."""
    if kind == "open_clip":
        id, spec, theirs = open_clip_folder(tmp_path / "config"), OpenClip, open_clip_logits
    else:
        id, spec, theirs = request.getfixturevalue(kind), HFClip, transformers_logits
    model = spec(id=id).build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
        model.scale.fill_(3.0)
    save(model, tmp_path / "saved")
    ours = logits(model, images, texts)
    torch.testing.assert_close(theirs(tmp_path / "saved", images, texts), ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(load(tmp_path / "saved").model, images, texts), ours, rtol=0, atol=1e-5)


def test_26_activation_and_preprocessing_are_kept(tmp_path, images, texts, monkeypatch):
    """Another activation, mean or interpolation than a model was trained with costs points in silence: here
    they go with the weights to open_clip and back, and a tag that was trained with quick_gelu brings it."""
    model = (
        OpenClip(id=open_clip_folder(tmp_path / "config", OPEN_CLIP | {"quick_gelu": True})).build().eval()
    )
    save(model, tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "open_clip_config.json").read_text())
    assert told["model_cfg"]["quick_gelu"] is True and told["preprocess_cfg"] == PREPROCESS
    theirs, process = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'saved'}")
    back = load(tmp_path / "saved").model
    for net in (theirs.visual, theirs, back.image.net, back.text.net):
        assert isinstance(net.transformer.resblocks[0].mlp.gelu, QuickGELU)
    pixels = torch.stack([process(image) for image in images])
    for pair in (model, back):
        assert torch.equal(pair.image.process(images)["pixels"], pixels)
    plain = OpenClip(id=open_clip_folder(tmp_path / "plain")).build().eval()
    plain.load_state_dict(model.state_dict())
    assert (logits(plain, images, texts) - logits(back, images, texts)).abs().max() > 1e-4

    class AskedError(Exception):
        pass

    def create(*_: object, force_quick_gelu: bool, **__: object) -> None:
        raise AskedError(force_quick_gelu)

    monkeypatch.setattr(open_clip, "create_model", create)
    for tag, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        with pytest.raises(AskedError, match=str(quick)):
            OpenClip(id="ViT-B-32", pretrained=tag).build()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "base_model.model."])
def test_28_wrapped_keys(tmp_path, images, texts, prefix):
    """Names that a wrapper has lengthened match nothing, and a lenient loader leaves the weights random: here
    the names of DDP, torch.compile and PEFT load, and weights with adapters beside them are refused."""
    id = open_clip_folder(tmp_path / "config")
    model = OpenClip(id=id).build().eval()
    save(model, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in load_file(file).items()}, file)
    found = logits(load(tmp_path / "saved").model, images, texts)
    torch.testing.assert_close(found, logits(model, images, texts), rtol=0, atol=1e-6)

    adapted = OpenClip(id=id, text=LOCKED["text"]).build().eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    state = {f"{prefix}{name}": tensor for name, tensor in adapted.state_dict().items()}
    save(adapted, tmp_path / "merged", state)
    found = logits(load(tmp_path / "merged").model, images, texts)
    torch.testing.assert_close(found, logits(adapted, images, texts), rtol=0, atol=1e-5)

    own = {name.removeprefix("text.net."): tensor for name, tensor in adapted.text.state_dict().items()}
    save_file(
        load_file(file) | {f"{prefix}{name}": tensor.contiguous() for name, tensor in own.items()}, file
    )
    with pytest.raises(UserError, match="adapters"):
        load(tmp_path / "saved")
