"""Which parameters decay, and which values are refused."""

import pytest
import torch
from torch import nn

from vlalign.train.optimizers.adamw import AdamW, decays
from vlalign.types import UserError


@pytest.mark.parametrize(
    "name",
    [
        "image.net.cls_token", "image.net.pos_embed", "text.net.positional_embedding",
        "image.net.visual.class_embedding", "text.net.embeddings.position_embeddings.weight",
        "image.net.layers.0.attn.relative_position_bias_table", "image.net.class_token",
        "image.net.reg_token", "image.net.dist_token", "image.net.embeddings.mask_token",
        "image.net.embeddings.register_tokens", "image.net.embeddings.distillation_token",
        "text.net.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "text.net.embeddings.token_type_embeddings.weight",
    ],
)  # fmt: skip
def test_offsets_with_several_axes_do_not_decay(name):
    assert not decays(name, nn.Parameter(torch.zeros(2, 3)))


@pytest.mark.parametrize(
    "name",
    [
        "text.net.token_embedding.weight",
        "image.net.decomposition.weight",
        "head.weight",
        "text.embeddings.word_embeddings.weight",
    ],
)
def test_matrices_decay(name):
    assert decays(name, nn.Parameter(torch.zeros(2, 3)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.LayerNorm(4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.scale, self.bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.locked = nn.Linear(4, 4).requires_grad_(False)


def test_groups_hold_each_learned_parameter_once():
    model = Model()
    groups = AdamW(lr=1e-3, weight_decay=0.2).build(model).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {group["weight_decay"]: sorted(names[id(p)] for p in group["params"]) for group in groups}
    assert found == {
        0.2: ["conv.weight"],
        0.0: ["bias", "conv.bias", "norm.bias", "norm.weight", "pos_embed", "scale"],
    }


def test_nothing_to_learn_is_refused():
    with pytest.raises(UserError, match="every parameter is locked"):
        AdamW(lr=1e-3).build(nn.Linear(2, 2).requires_grad_(False))


@pytest.mark.parametrize(
    "field",
    [
        *({name: 0.0} for name in ("lr", "eps")),
        *({name: -1.0} for name in ("weight_decay", "clip")),
        *({name: x} for name in ("lr", "weight_decay", "clip", "eps") for x in (float("nan"), float("inf"))),
        {"betas": (0.9, 1.0)},
        {"betas": (float("nan"), 0.9)},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_by_its_name(field):
    with pytest.raises(ValueError, match=f"^{next(iter(field))} must be "):
        AdamW(**{"lr": 1e-3, **field})
