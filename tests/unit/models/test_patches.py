"""Patch dropout: fewer tokens in training only, the same ones when chunks are replayed, refused elsewhere."""

import pytest
import torch
from pydantic import ValidationError

from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from tests.unit.train.test_model import batch
from tests.unit.train.test_step import OneProcess, close, direct
from vlalign.models.lora import Lora
from vlalign.models.tower import Adaptation
from vlalign.objectives.info_nce import InfoNCE
from vlalign.registry import MODELS, TOWERS
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.train.step import cached
from vlalign.types import UserError

PLAIN = OPEN_CLIP | {
    "vision_cfg": {**OPEN_CLIP["vision_cfg"], "patch_size": 8}
}  # 16 patches and a class token
TRUNK = OPEN_CLIP | {"vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}}


def tower(spec, how):
    """An image tower, as a model adapts it."""
    built = TOWERS.decode(spec).build("image", 16)
    built.adapt(how)
    return built.train()


def tokens(tower, size: int) -> list[int]:
    """How many tokens the first block reads, in training and in evaluation."""
    net = getattr(tower.net, "trunk", tower.net)
    block = net.blocks[0] if hasattr(net, "blocks") else net.transformer.resblocks[0]
    seen = []
    hook = block.register_forward_hook(lambda _, inputs, out: seen.append(out))
    for mode in (True, False):
        tower.train(mode)({"pixels": torch.randn(2, 3, size, size)})
    hook.remove()
    return [each.shape[1] for each in seen]


@pytest.mark.parametrize(
    ("spec", "size", "others", "patches"),
    [
        ({"name": "open_clip", "config": PLAIN}, 32, 1, 16),
        ({"name": "open_clip", "config": TRUNK}, 160, 1, 100),
        ({"name": "timm", "id": "test_vit", "image_size": 64}, 64, 1, 16),
        ({"name": "timm", "id": "vit_little_patch16_reg4_gap_256", "image_size": 64}, 64, 4, 16),
    ],
    ids=["open_clip", "open_clip_of_timm", "timm", "timm_registers"],
)
@pytest.mark.parametrize("lora", [None, Lora()])
def test_blocks_read_fewer_tokens_in_training_and_all_in_evaluation(
    tmp_path, spec, size, others, patches, lora
):  # fmt: skip
    if "config" in spec:
        spec = {"name": "open_clip", "id": open_clip_folder(tmp_path, spec["config"])}
    found = tokens(tower(spec, Adaptation(patch_dropout=0.75, lora=lora)), size)
    assert found == [others + patches // 4, others + patches]


def test_it_draws_anew_each_time_and_evaluation_is_what_it_was(tmp_path):
    id = open_clip_folder(tmp_path, PLAIN)
    torch.manual_seed(0)
    plain = tower({"name": "open_clip", "id": id}, Adaptation())
    torch.manual_seed(0)
    drops = tower({"name": "open_clip", "id": id}, Adaptation(patch_dropout=0.5))
    pixels = {"pixels": torch.randn(4, 3, 32, 32)}
    assert not torch.allclose(drops(pixels), drops(pixels))
    assert torch.equal(drops.eval()(pixels), plain.eval()(pixels))
    assert list(drops.state_dict()) == list(plain.state_dict())


def test_cached_chunks_replay_which_patches_were_dropped(tmp_path):
    task = Align(targets=Identity(), terms=(Term(objective=InfoNCE()),))
    spec = {"name": "open_clip", "id": open_clip_folder(tmp_path, PLAIN), "image": {"patch_dropout": 0.5}}
    model, chunks = MODELS.decode(spec).build(), [batch(0), batch(10)]
    torch.manual_seed(3)
    direct(model, chunks, task, divisor=8)
    wanted = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    torch.manual_seed(3)
    cached(OneProcess(), model, chunks, task, step=1, total=9, divisor=8)
    close(wanted, {name: p.grad for name, p in model.named_parameters()})


def test_what_cannot_drop_patches_is_refused(tmp_path, bert_id, vit_id, hf_clip_id):
    drop = {"patch_dropout": 0.5}
    open_clip = open_clip_folder(tmp_path)
    timm = {"name": "timm", "id": "test_efficientnet", "image_size": 32}
    bert = {"name": "hf_text", "id": bert_id}
    for model, told in (
        ({"name": "open_clip", "id": open_clip, "text": drop}, "model.text: patch_dropout: only vision"),
        ({"name": "hf_clip", "id": hf_clip_id, "image": drop}, "model.image: patch_dropout: only vision"),
        ({"name": "dual_encoder", "image": timm | drop, "text": bert}, "this is EfficientNet"),
        (
            {"name": "dual_encoder", "image": {"name": "hf_vision", "id": vit_id} | drop, "text": bert},
            "ViTModel",
        ),
    ):
        with pytest.raises(UserError, match=told):
            MODELS.decode(model).build()
    for image, told in (
        ({"patch_dropout": 1.0}, "patch_dropout must be >= 0 and < 1, got 1.0"),
        ({"patch_dropout": 0.5, "lock": True}, "patch_dropout changes nothing of a locked tower"),
        ({"patch_dropout": 0.5, "lock": {"unlocked_groups": 0}}, "patch_dropout changes nothing"),
    ):
        with pytest.raises((ValidationError, ValueError), match=told):
            MODELS.decode({"name": "open_clip", "id": open_clip, "image": image})
