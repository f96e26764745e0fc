import math
import pickle

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from vlalign.models.pair import Bias, Scale
from vlalign.registry import MODELS
from vlalign.types import UserError


def spec(open_clip_id, bert_id, **more):
    image = {"name": "timm", "id": "test_efficientnet", "image_size": 48, **more.pop("image", {})}
    text = {"name": "hf_text", "id": bert_id, **more.pop("text", {})}
    return MODELS.decode({"name": "dual_encoder", "image": image, "text": text, "dim": 16, **more})


@pytest.fixture
def build(open_clip_id, bert_id):
    return lambda **more: spec(open_clip_id, bert_id, **more).build()


@pytest.fixture
def batch(build, images, texts):
    def of(model):
        image, text = model.processors()
        return {"query": image(images), "key": text(texts)}

    return of


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_both_sides_are_unit_rows_with_scale_and_bias_of_shape_one(build, batch, head):
    model = build(head=head, scale={"init": 10.0}, bias={"init": -5.0, "learn": True})
    out = model(batch(model))
    assert out.query.shape == out.key.shape == (4, 16) and out.query.dtype == torch.float32
    torch.testing.assert_close(out.query.norm(dim=-1), torch.ones(4))
    assert out.scale.shape == out.bias.shape == (1,)
    assert out.scale.item() == pytest.approx(10.0) and out.bias.item() == -5.0
    assert model.scale.item() == pytest.approx(math.log(10.0))


def test_cached_features_skip_the_tower(build, batch):
    model = build()
    model.eval()
    inputs = batch(model)["query"]
    with torch.no_grad():
        features = model.image(inputs)
        assert features.shape == (4, model.image.width)
        assert torch.equal(model.encode_image({"features": features}), model.encode_image(inputs))


def test_the_scale_is_clamped_from_above_only(build):
    model = build(scale={"init": 14.3, "max": 50.0})
    model.clamp_scale()
    assert model.scale.exp().item() == pytest.approx(14.3)
    model.scale.data.fill_(9.0)
    model.clamp_scale()
    assert model.scale.exp().item() == pytest.approx(50.0)
    model.scale.data.fill_(-1.0)
    model.clamp_scale()
    assert model.scale.item() == -1.0


def test_scale_and_bias_learn_when_the_recipe_says_so(build):
    model = build(scale={"learn": False}, bias={"learn": True})
    assert not model.scale.requires_grad and model.bias.requires_grad


def test_batch_norm_keeps_its_statistics_and_learns_its_affine(build, batch):
    model = build()
    model.train()
    norms = [m for m in model.image.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and not any(norm.training for norm in norms) and model.image.training
    before = {name: buffer.clone() for name, buffer in model.image.named_buffers()}
    model(batch(model)).query.sum().backward()
    assert all(torch.equal(before[name], buffer) for name, buffer in model.image.named_buffers())
    assert all(norm.weight.grad is not None for norm in norms)


def test_a_locked_tower_sleeps_and_gets_no_gradient(build, batch):
    model = build(image={"lock": True})
    model.train()
    assert model.locked == {"image"}
    assert not any(module.training for module in model.image.modules())
    assert all(module.training for module in model.text.modules())
    (model(batch(model)).query.sum() + model(batch(model)).key.sum()).backward()
    assert all(parameter.grad is None for parameter in model.image.parameters())
    assert model.image_head.weight.grad is not None


def test_the_last_groups_stay_unlocked(build, batch):
    model = build(text={"lock": {"unlocked_groups": 1}})
    model.train()
    learning = {name for name, parameter in model.text.named_parameters() if parameter.requires_grad}
    assert learning and all(".layer.1." in name for name in learning)
    assert model.locked == set()
    layers = model.text.net.encoder.layer
    assert layers[1].training and not layers[0].training and not model.text.net.embeddings.training
    model.eval()
    assert not layers[1].training


def test_more_groups_than_there_are_are_refused(build):
    with pytest.raises(UserError, match="model.text: unlocked_groups: 99 asked for, but this tower has 3"):
        build(text={"lock": {"unlocked_groups": 99}})


@pytest.mark.parametrize("side", ["image", "text"])
def test_checkpointed_gradients_equal_plain_ones(build, batch, side):
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = build()
        if checkpointed:
            model.gradient_checkpointing()
        model.train()
        torch.manual_seed(1)
        out = model(batch(model))
        (out.query @ out.key.T).diagonal().sum().backward()
        grads.append(
            {name: p.grad.clone() for name, p in model.tower(side).named_parameters() if p.grad is not None}
        )
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-5, atol=1e-6)


def test_processors_pickle(build, images, texts):
    for processor, items in zip(build().processors(), (images, texts), strict=True):
        again = pickle.loads(pickle.dumps(processor))
        ours, theirs = processor(items), again(items)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert again.describe() == processor.describe() and " at 0x" not in processor.describe()


def test_every_tower_parameter_gets_a_gradient(build, batch):
    model = build()
    out = model(batch(model))
    (out.query.sum() + out.key.sum()).backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None and name not in ("scale", "bias")]
    assert lost == []


def test_a_tower_on_the_wrong_side_is_refused(open_clip_id, bert_id):
    text = {"name": "hf_text", "id": bert_id}
    with pytest.raises(ValidationError, match="image: 'hf_text' is a tower for texts, not for images"):
        MODELS.decode({"name": "dual_encoder", "image": text, "text": text})


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": {"init": 200.0}},
        {"dim": 0},
        {"image": {"lock": True, "lora": {"rank": 2}}},
        {"text": {"max_length": 0}},
    ],
)
def test_values_out_of_range_are_refused(open_clip_id, bert_id, wrong):
    with pytest.raises(ValidationError):
        spec(open_clip_id, bert_id, **wrong)


def test_defaults_are_those_of_clip():
    assert (Scale().init, Scale().max, Scale().learn, Bias().init, Bias().learn) == (
        14.3,
        100.0,
        True,
        0.0,
        False,
    )


@pytest.mark.parametrize("part", [{"scale": {"max": float("inf")}}, {"bias": {"init": float("nan")}}])
def test_scale_and_bias_are_finite(open_clip_id, part):
    with pytest.raises(ValueError, match="finite"):
        MODELS.decode({"name": "open_clip", "id": open_clip_id, **part})


def test_scale_and_bias_of_bfloat16_parameters_are_not_rounded_again(build, batch):
    model = build(scale={"init": 14.3}, bias={"init": -5.3})
    batch = batch(model)
    plain = model(batch)
    assert torch.equal(plain.scale, model.scale.exp()) and plain.bias is model.bias
    for parameter in (model.scale, model.bias):
        parameter.data = parameter.data.bfloat16()
    out = model(batch)
    assert out.scale.dtype == out.bias.dtype == torch.float32
    assert torch.equal(out.scale, model.scale.float().exp()) and torch.equal(out.bias, model.bias.float())
