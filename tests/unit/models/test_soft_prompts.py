"""Learned prompts: they alone learn, none is the base, and what they do is what a forward by hand does."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoTokenizer, Dinov2Config, Dinov2Model

import vlalign
from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from tests.unit.models.test_lora import rows, train
from vlalign.models import open_clip_layout
from vlalign.models.weights import initialise, save
from vlalign.registry import MODELS
from vlalign.types import UserError

SIDES = ("image", "text")
TRUNK = {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "token"}
CONFIGS = {
    "open_clip": OPEN_CLIP,
    "open_clip_of_timm": {**OPEN_CLIP, "vision_cfg": TRUNK},
}


def words(kind, request, tmp_path, image=4, text=3):
    """A dual encoder in the words of a recipe; `open_clip` is both its towers, else its texts are BERT's."""
    reads = {"name": "hf_text", "id": request.getfixturevalue("bert_id"), "prompts": text}
    if kind in CONFIGS:
        sees = {"name": "open_clip", "id": open_clip_folder(tmp_path / kind, CONFIGS[kind])}
        if kind == "open_clip":
            reads = {**sees, "prompts": text}
    elif kind == "timm":
        sees = {"name": "timm", "id": "test_vit", "image_size": 32}
    else:
        sees = {"name": "hf_vision", "id": request.getfixturevalue("vit_id")}
        if kind == "dinov2":
            sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
            Dinov2Model(Dinov2Config(**sizes, image_size=32, patch_size=16)).save_pretrained(sees["id"])
    return {"name": "dual_encoder", "dim": 16, "image": {**sees, "prompts": image}, "text": reads}


@pytest.fixture(params=["open_clip", "open_clip_of_timm", "timm", "hf_vision", "dinov2"])
def told(request, tmp_path):
    return words(request.param, request, tmp_path)


def without(told):
    return {**told, **{side: {**told[side], "prompts": 0} for side in SIDES}}


def test_of_the_towers_the_prompts_alone_learn(told, images, texts):
    model = MODELS.decode(told).build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train(model, images, texts)
    changed = {name for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    assert {name for name in changed if name.startswith(("image.", "text."))} == {
        "image.prompts.vectors",
        "text.prompts.vectors",
    }
    assert all(x.grad is None for name, x in model.named_parameters() if ".net." in name)
    assert [len(model.tower(side).prompts.vectors) for side in SIDES] == [4, 3]
    assert all(x.prompts.vectors.grad.abs().amax(1).gt(0).all() for x in (model.image, model.text))
    assert model.locked == set()  # so that no features of it are cached while it learns


def test_none_is_the_base_bit_by_bit(told, images, texts):
    """And other than with some."""
    torch.manual_seed(0)
    plain = MODELS.decode(without(told)).build().eval()
    bare = {**told, **{side: {key: x for key, x in told[side].items() if key != "prompts"} for side in SIDES}}
    torch.manual_seed(0)
    other = MODELS.decode(bare).build().eval()
    for ours, theirs in zip(rows(plain, images, texts), rows(other, images, texts), strict=True):
        assert torch.equal(ours, theirs)
    assert not any("prompts" in name for name in plain.state_dict())
    prompted = MODELS.decode(told).build().eval()
    prompted.load_state_dict(plain.state_dict(), strict=False)
    for ours, theirs in zip(rows(prompted, images, texts), rows(plain, images, texts), strict=True):
        assert not torch.allclose(ours, theirs, atol=1e-4)


def test_they_are_saved_and_loaded(told, images, texts, tmp_path):
    model = train(MODELS.decode(told).build(), images, texts).eval()
    save(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / open_clip_layout.CONFIG).exists()  # which would lose them
    loaded = vlalign.load(tmp_path / "saved").model
    assert torch.equal(loaded.image.prompts.vectors, model.image.prompts.vectors)
    for ours, theirs in zip(rows(model, images, texts), rows(loaded, images, texts), strict=True):
        assert torch.equal(ours, theirs)
    if told["text"]["name"] == "open_clip":  # without prompts that layout stays
        save(MODELS.decode(without(told)).build(), tmp_path / "plain")
        assert (tmp_path / "plain" / open_clip_layout.CONFIG).exists()


def test_they_start_anew_on_a_model_that_has_none_and_go_on_from_one_that_has(told, images, texts, tmp_path):
    plain = MODELS.decode(without(told)).build()
    save(plain, tmp_path / "plain")
    model = MODELS.decode({**told, "image": told["image"] | {"prompts": 0}}).build()
    own = model.text.prompts.vectors.detach().clone()
    initialise(model, tmp_path / "plain")
    assert torch.equal(model.text.prompts.vectors, own)
    base, ours = plain.state_dict(), model.state_dict()
    assert all(torch.equal(ours[name], x) for name, x in base.items())
    save(train(model, images, texts), tmp_path / "prompted")
    again = MODELS.decode({**told, "image": told["image"] | {"prompts": 0}}).build()
    initialise(again, tmp_path / "prompted")
    assert torch.equal(again.text.prompts.vectors, model.text.prompts.vectors)
    with pytest.raises(UserError, match=r"a strange text\.prompts\.vectors"):
        initialise(MODELS.decode(without(told)).build(), tmp_path / "prompted")


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_a_text_alone_and_among_longer_ones_has_one_row(told, texts, pool):
    if told["text"]["name"] == "hf_text":
        told = {**told, "text": told["text"] | {"pool": pool}}
    model = MODELS.decode(told).build().eval()
    with torch.no_grad():
        together = model.encode_text(model.text.process(texts))
        for text, row in zip(texts, together, strict=True):
            alone = model.encode_text(model.text.process([text]))[0]
            torch.testing.assert_close(alone, row, rtol=0, atol=2e-6)


def test_a_copy_has_its_own(told, images, texts):
    model = MODELS.decode(told).build().eval()
    other = copy.deepcopy(model)
    before = rows(model, images, texts)
    with torch.no_grad():
        for side in SIDES:
            other.tower(side).prompts.vectors.normal_()
    for ours, same, theirs in zip(
        rows(model, images, texts), before, rows(other, images, texts), strict=True
    ):
        assert torch.equal(ours, same) and not torch.allclose(ours, theirs, atol=1e-4)


def test_gradients_are_the_same_where_activations_are_computed_again(told, images, texts):
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        model = MODELS.decode(told).build()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if again:
            model.gradient_checkpointing()
        out = model({"query": model.image.process(images), "key": model.text.process(texts)})
        (out.query @ out.key.T).diagonal().sum().backward()
        found.append([model.tower(side).prompts.vectors.grad for side in SIDES])
    for direct, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, direct, rtol=1e-4, atol=1e-7)


def by_hand(net, tokens, heads, causal):
    """Blocks of open_clip over one row's tokens [T, W], an attention of loops."""
    for block in net.transformer.resblocks:
        x = block.ln_1(tokens)
        joint = x @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        width = tokens.shape[1] // heads
        mixed = torch.zeros_like(x)
        for head in range(heads):
            q, k, v = (part[:, head * width : (head + 1) * width] for part in joint.chunk(3, dim=1))
            for at in range(len(x)):
                seen = at + 1 if causal else len(x)
                weights = (k[:seen] @ q[at] / math.sqrt(width)).softmax(0)
                mixed[at, head * width : (head + 1) * width] = weights @ v[:seen]
        tokens = tokens + block.attn.out_proj(mixed)
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return tokens


@pytest.mark.parametrize("side", SIDES)
def test_open_clip_is_a_forward_by_hand(request, tmp_path, side, images, texts):
    tower = MODELS.decode(words("open_clip", request, tmp_path)).build().double().eval().tower(side)
    net, own, inputs = tower.net, tower.prompts.vectors, tower.process(images if side == "image" else texts)
    with torch.no_grad():
        found = tower({name: x.double() if x.is_floating_point() else x for name, x in inputs.items()})
        for row, (given,) in zip(found, zip(*inputs.values(), strict=True), strict=True):
            if side == "image":
                patches = net.conv1(given[None].double()).flatten(2).mT[0]
                tokens = torch.cat([net.class_embedding[None], patches]) + net.positional_embedding
                tokens = net.ln_pre.forward(tokens)  # without hooks
                tokens = torch.cat([tokens[:1], own, tokens[1:]])
                wanted = net.ln_post(by_hand(net, tokens, 2, False)[0]) @ net.proj
            else:
                length = int(given.argmax()) + 1
                tokens = net.token_embedding.weight[given[:length]]
                tokens = torch.cat([tokens[:1], own, tokens[1:]]) + net.positional_embedding[: length + 3]
                wanted = net.ln_final(by_hand(net, tokens, 2, True)[-1]) @ net.text_projection
            torch.testing.assert_close(row, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
def test_hf_text_reads_vectors_and_pools_words_alone(request, tmp_path, texts, pool):
    spec = words("hf_vision", request, tmp_path)
    tower = MODELS.decode({**spec, "text": spec["text"] | {"pool": pool}}).build().eval().text
    base = MODELS.decode(without(spec)).build().eval().text.net
    base.load_state_dict(tower.net.state_dict())
    with torch.no_grad():
        for text, row in zip(texts, tower(tower.process(texts)), strict=True):
            given = base.embeddings.word_embeddings(tower.process([text])["input_ids"][0])
            given = torch.cat([given[:1], tower.prompts.vectors, given[1:]])
            states = base(inputs_embeds=given[None]).last_hidden_state[0]
            own = torch.cat([states[:1], states[4:]])
            wanted = {"mean": own.mean(0), "cls": own[0], "last": own[-1]}[pool]
            torch.testing.assert_close(row, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pool", ["pooler", "mean", "cls"])
def test_hf_vision_pools_its_own_tokens_alone(request, tmp_path, images, pool):
    spec = words("hf_vision", request, tmp_path)
    tower = MODELS.decode({**spec, "image": spec["image"] | {"pool": pool}}).build().eval().image
    base = MODELS.decode(without(spec)).build().eval().image.net
    base.load_state_dict(tower.net.state_dict(), strict=False)
    inputs = tower.process(images)
    with torch.no_grad():
        tokens = base.embeddings(inputs["pixels"])
        own = tower.prompts.vectors.expand(len(tokens), -1, -1)
        tokens = torch.cat([tokens, own], dim=1)  # they have no positions, so that any place is the same
        for layer in base.layers:
            tokens = layer(tokens, None)
        tokens = base.layernorm(tokens)[:, :-4]
        wanted = {"mean": tokens.mean(1), "cls": tokens[:, 0]}
        wanted = wanted[pool] if pool in wanted else tower.net.pooler(tokens)
        torch.testing.assert_close(tower(inputs), wanted, rtol=0, atol=1e-5)


def test_timm_pools_its_own_tokens_alone(request, tmp_path, images):
    spec = words("timm", request, tmp_path)
    tower = MODELS.decode(spec).build().eval().image
    base = MODELS.decode(without(spec)).build().eval().image.net
    base.load_state_dict(tower.net.state_dict())
    inputs = tower.process(images)
    with torch.no_grad():
        tokens = base.norm_pre(base._pos_embed(base.patch_embed(inputs["pixels"])))
        tokens = torch.cat([tokens, tower.prompts.vectors.expand(len(tokens), -1, -1)], dim=1)
        wanted = base.forward_head(base.norm(base.blocks(tokens))[:, :-4])
        torch.testing.assert_close(tower(inputs), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["timm", "hf_vision"])
def test_patches_are_given_without_them(request, tmp_path, images, kind):
    towers = [
        MODELS.decode(spec).build().eval().image
        for spec in (words(kind, request, tmp_path), words(kind, request, tmp_path, image=0))
    ]
    for tower in towers:
        tower.unpool()
    prompted, plain = (tower(tower.process(images)) for tower in towers)
    assert prompted.shape == plain.shape == (4, 4, plain.shape[2])


def test_patches_are_left_out_and_prompts_are_not(request, tmp_path, images):
    spec = words("open_clip", request, tmp_path)
    tower = MODELS.decode({**spec, "image": spec["image"] | {"patch_dropout": 0.5}}).build().image
    seen = []
    block = tower.net.transformer.resblocks[0]
    block.register_forward_hook(lambda _, inputs, out: seen.append(out.shape[1]))
    for mode in (True, False):
        tower.train(mode)(tower.process(images))
    assert seen == [1 + 4 + 2, 1 + 4 + 4]


def test_texts_leave_room_for_them(request, tmp_path):
    long = ["a cat " * 40]
    for kind, longest in (("open_clip", 24), ("hf_vision", 20)):
        model = MODELS.decode(words(kind, request, tmp_path)).build()
        inputs = model.text.process(long)
        assert inputs["input_ids"].shape == (1, longest - 3)
        assert model.text(inputs).isfinite().all()
        told = f"reads {longest} tokens, and {longest - 2} prompts leave too few to a text; take at most"
        with pytest.raises(UserError, match=told):
            MODELS.decode(words(kind, request, tmp_path, text=longest - 2)).build()


def test_in_bfloat16_rows_are_near(told, images, texts):
    model = MODELS.decode(told).build().eval()
    wanted = rows(model, images, texts)
    for ours, theirs in zip(rows(model.bfloat16(), images, texts), wanted, strict=True):
        assert (ours * theirs).sum(-1).min() > 0.99


def test_what_cannot_have_them_is_refused(request, tmp_path, bert_id, vit_id, hf_clip_id, siglip_id):
    open_clip, some = open_clip_folder(tmp_path), {"prompts": 2}
    text = {"name": "hf_text", "id": bert_id}
    timm = {"name": "timm", "id": "test_efficientnet", "image_size": 32}
    for model, told in (
        ({"name": "hf_clip", "id": hf_clip_id, "text": some}, "model.text: prompts: only plain vision"),
        ({"name": "hf_clip", "id": siglip_id, "image": some}, "this is Half; use prompts: 0, or lora"),
        ({"name": "dual_encoder", "image": timm | some, "text": text}, "this is EfficientNet"),
    ):
        with pytest.raises(UserError, match=told):
            MODELS.decode(model).build()
    for image, told in (
        ({"prompts": -1}, "prompts must be >= 0, got -1"),
        ({"prompts": 2, "lock": True}, "prompts freeze the tower's own weights already; leave lock and lora"),
        ({"prompts": 2, "lora": {"rank": 2}}, "leave lock and lora out"),
        (some, "open_clip's own layout has no place for them; take name: dual_encoder"),
    ):
        with pytest.raises((ValidationError, ValueError), match=told):
            MODELS.decode({"name": "open_clip", "id": open_clip, "image": image})


def test_a_tokenizer_that_pads_on_the_left_is_refused(bert_id, vit_id):
    AutoTokenizer.from_pretrained(bert_id, padding_side="left").save_pretrained(bert_id)
    spec = {"name": "dual_encoder", "image": {"name": "hf_vision", "id": vit_id}}
    with pytest.raises(UserError, match=r"model\.text: prompts: this tower's tokenizer pads on the left"):
        MODELS.decode({**spec, "text": {"name": "hf_text", "id": bert_id, "prompts": 2}}).build()
