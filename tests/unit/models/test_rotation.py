"""A turned language model answers as before, and is saved and loaded so; others are refused."""

from functools import partial

import pytest
import torch

from tests.language_models import inputs, reranker
from tests.multimodal_models import reranker as seeing
from vlalign.models.rotation import KNOWN, rotate
from vlalign.models.weights import opened, save
from vlalign.types import UserError

GROUPS = [
    ("a red car", ["a small cat near a tree", "a red car and a dog"]),
    ("yes", ["no", "a dog in the house"]),
]


def made(folder, family, tied=True, bias=False):
    """A reranker whose norms have gains, and with `bias` whose Linear layers have an offset."""
    model = reranker(folder, family, tied)
    random = torch.Generator().manual_seed(1)
    for name, weight in model.net.named_parameters():
        if "norm" in name:
            weight.data = 1 + torch.rand(weight.shape, generator=random)
    if bias:
        for each in model.net.model.layers.modules():
            if isinstance(each, torch.nn.Linear):
                each.bias = torch.nn.Parameter(torch.randn(each.out_features, generator=random))
    return model


def exact(net):
    """In float64 throughout: transformers computes these norms in float32 whatever they are given."""

    def forward(norm, x):
        return norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()

    for each in net.double().eval().modules():
        if type(each).__name__.endswith("RMSNorm"):
            each.forward = partial(forward, each)
    return net


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logits_are_exact_and_hidden_states_are_turned(family, tied, bias, tmp_path):
    net = exact(made(tmp_path / family, family, tied, bias).net)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = net(ids, output_hidden_states=True)
        rotate(net, 3)
        after = net(ids, output_hidden_states=True)
    torch.testing.assert_close(after.logits, before.logits, atol=1e-10, rtol=1e-10)
    for old, new in zip(before.hidden_states[:-1], after.hidden_states[:-1], strict=True):
        assert not torch.allclose(old, new, atol=0.01)
        torch.testing.assert_close(old.norm(dim=-1), new.norm(dim=-1))
    assert all(
        (x == 1).all()
        for name, x in net.named_parameters()
        if "layernorm" in name or name == "model.norm.weight"
    )
    assert net.get_input_embeddings().weight is not net.get_output_embeddings().weight


@pytest.mark.parametrize("tied", [True, False])
def test_a_turned_reranker_is_saved_and_scores_the_same(tied, tmp_path):
    model = made(tmp_path / "own", "llama", tied)
    save(model, tmp_path / "plain")
    plain = opened(tmp_path / "plain", device="cpu")
    rotate(model.net, 0)
    save(model, tmp_path / "turned")
    turned = opened(tmp_path / "turned", device="cpu")
    assert turned.net.config.tie_word_embeddings is False
    with torch.no_grad():
        own, other = (each(inputs(each, *GROUPS)).scores for each in (plain, turned))
    torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-5)
    weight = turned.net.model.layers[0].mlp.down_proj.weight
    assert not torch.allclose(weight, plain.net.model.layers[0].mlp.down_proj.weight, atol=0.01)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_other_ways_into_hidden_states_are_refused(family, tmp_path):
    net = seeing(tmp_path / family, family).net
    with pytest.raises(
        UserError, match=f"rotate: .*{', '.join(KNOWN)}, and this model is of {family}; leave"
    ):
        rotate(net, 0)


@pytest.mark.parametrize("kind", ["Mistral", "Qwen2"])
def test_every_family_that_is_named_is_exact(kind):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "vocab_size": 50, "initializer_range": 0.3}
    torch.manual_seed(0)
    net = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes, **more))
    net = exact(net)
    for weight in net.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        before = net(ids).logits
        rotate(net, 3)
        torch.testing.assert_close(net(ids).logits, before, atol=1e-10, rtol=1e-10)
