"""Layers are changed one after the other, by what a forward through the changed ones shows them."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from tests.language_models import reranker
from tests.multimodal_models import picture
from tests.multimodal_models import reranker as seeing
from vlalign.models.layerwise import Layerwise, blocks
from vlalign.ops.quantization import round_to_nearest, token_weights
from vlalign.registry import IMPORTANCES
from vlalign.types import Item, UserError

PAIRS = [
    ("a red car", "a small cat near a tree"),
    ("yes", "no"),
    ("a dog", "a red car and a dog in the house"),
]
weigh = partial(token_weights, low=0.05, high=1.0)


def made(folder, family="llama"):
    model = reranker(folder, family)
    model.process.share = False
    texts = [model.process.read(Item(text=q), [Item(text=d)])[0] for q, d in PAIRS]
    return model, texts


def linears(net):
    inside = {part for block in blocks(net) for part in block.modules()}
    return {
        name: each for name, each in net.named_modules() if each in inside and isinstance(each, nn.Linear)
    }


def read_by(model, text, name):
    """What a layer reads of a text in a forward of the whole model, [T, I]."""
    found = []
    hook = model.net.get_submodule(name).register_forward_pre_hook(
        lambda layer, args: found.append(args[0][0])
    )
    with torch.no_grad():
        model({"pairs": model.process.join([[text]])})
    hook.remove()
    return found[0]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_each_layer_is_changed_by_what_the_changed_ones_before_it_give(family, tmp_path):
    model, texts = made(tmp_path / family, family)
    slow, seen = deepcopy(model), []

    def change(weight, moments):
        seen.append(moments)
        return round_to_nearest(weight, 3)

    found = Layerwise(model, texts, None, weigh).run(change)
    assert found.keys() == linears(model.net).keys() and len(seen) == len(found)
    order, pending = list(found), []
    for name, moments in zip(order, seen, strict=True):
        reads = [read_by(slow, text, name) for text in texts]
        hand = sum(2 / len(texts) * torch.outer(x, x).double() for own in reads for x in own)
        torch.testing.assert_close(moments, hand, atol=1e-4, rtol=1e-4)
        pending.append(name)
        last = name.rpartition(".")[2]
        if last in (
            "v_proj",
            "o_proj",
            "up_proj",
            "down_proj",
        ):  # q, k and v are changed together, and gate and up
            for each in pending:
                layer = slow.net.get_submodule(each)
                layer.weight.data = round_to_nearest(layer.weight.data, 3).weight
            pending = []
    for name, layer in linears(model.net).items():
        torch.testing.assert_close(layer.weight, found[name].weight, atol=0, rtol=0)
        torch.testing.assert_close(layer.weight, slow.net.get_submodule(name).weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", IMPORTANCES.names())
def test_tokens_are_weighted_in_every_layer_by_what_goes_in_and_comes_out(name, tmp_path):
    model, texts = made(tmp_path / "llama")
    importance, moments = IMPORTANCES.decode(name), []
    model.net.set_attn_implementation("eager")

    def change(weight, found):
        moments.append(found)
        return round_to_nearest(weight, 8)

    hand = torch.zeros(32, 32, dtype=torch.float64)
    counts = torch.cat([torch.tensor(text.ids) for text in texts]).bincount()
    for text in texts:
        with torch.no_grad():
            told = model.net.model(
                torch.tensor([text.ids]), output_hidden_states=True, output_attentions=True
            )
        seen = type("Seen", (), {})()
        seen.ids = torch.tensor(text.ids)
        seen.counts, seen.attention = counts[seen.ids], told.attentions[0][0]
        seen.before, seen.after = told.hidden_states[0][0], told.hidden_states[1][0]
        weights = weigh(importance(seen))
        assert weights.sum().item() == pytest.approx(len(text.ids))
        reads = read_by(model, text, "model.layers.0.self_attn.q_proj")
        hand += sum(
            2 / len(texts) * w * torch.outer(x, x).double() for w, x in zip(weights, reads, strict=True)
        )
    Layerwise(model, texts, importance, weigh).run(change)
    torch.testing.assert_close(moments[0], hand, atol=1e-4, rtol=1e-4)


def test_attention_that_is_not_shown_is_missed(tmp_path):
    model, texts = made(tmp_path / "llama")
    model.net.set_attn_implementation("sdpa")
    layers = Layerwise(model, texts, IMPORTANCES.decode("attention_concentration"), weigh)
    with pytest.raises(UserError, match="importance: layer 0 of LlamaForCausalLM shows no attention; choose"):
        layers.run(lambda weight, moments: round_to_nearest(weight, 3))


def test_pictures_that_enter_between_layers_are_refused_and_texts_are_not(tmp_path):
    model = seeing(tmp_path / "qwen3_vl", "qwen3_vl")
    model.process.share = False
    shown, told = (
        model.process.read(Item(text="a cat"), [each])
        for each in (Item(text="a dog", images=(picture(0),)), Item(text="a dog"))
    )
    assert len(Layerwise(model, told, None, weigh).run(lambda weight, _: round_to_nearest(weight, 4)))
    with pytest.raises(
        UserError, match="its layers read more than the one before gives, as of pictures; give"
    ):
        Layerwise(model, shown, None, weigh)


def test_pictures_that_enter_with_the_tokens_are_read(tmp_path):
    model = seeing(tmp_path / "llava", "llava")
    model.process.share = False
    texts = model.process.read(Item(text="a cat"), [Item(text="a dog", images=(picture(0),))])
    found = Layerwise(model, texts, IMPORTANCES.decode("activation_norm"), weigh).run(
        lambda weight, _: round_to_nearest(weight, 4)
    )
    assert found and all("language_model" in name for name in found)
