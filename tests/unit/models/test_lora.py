import pytest
import torch

from vlalign.models import attention
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.weights import initialise, load, save
from vlalign.registry import MODELS
from vlalign.types import UserError

SIDES = ("image", "text")


@pytest.fixture(params=["open_clip", "hf_clip", "siglip", "timm_bert"])
def words(request):
    """Each spec in the words of a recipe, LoRA on both towers."""
    lora = {"lora": {"rank": 2, "alpha": 8}}
    if request.param == "timm_bert":
        image = {"name": "timm", "id": "test_vit", "image_size": 32, **lora}
        text = {"name": "hf_text", "id": request.getfixturevalue("bert_id"), **lora}
        return {"name": "dual_encoder", "dim": 16, "image": image, "text": text}
    name = "open_clip" if request.param == "open_clip" else "hf_clip"
    fixture = "siglip_id" if request.param == "siglip" else f"{name}_id"
    return {"name": name, "id": request.getfixturevalue(fixture), "image": dict(lora), "text": dict(lora)}


def train(model, images, texts, steps=2):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        batch = {"query": model.image.process(images), "key": model.text.process(texts)}
        out = model(batch)
        logits = out.scale * out.query @ out.key.T + out.bias
        torch.nn.functional.cross_entropy(logits, torch.arange(len(texts))).backward()
        optimizer.step()
    return model


def rows(model, images, texts):
    embedder = DualEncoderEmbedder(model)
    return embedder.encode_image(images), embedder.encode_text(texts)


def test_every_adapter_moves_and_the_base_is_bit_identical(words, images, texts):
    model = MODELS.decode(words).build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    storage = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    train(model, images, texts)
    adapters = {name for name in before if ".lora_" in name}
    base = {name for name in before if name.startswith(("image.", "text."))} - adapters
    layers = sum(len(model.tower(side).adapters.layers) for side in SIDES)
    assert len(adapters) == 2 * layers > 20
    after = dict(model.named_parameters())
    assert [name for name in adapters if torch.equal(after[name], before[name])] == []
    assert [name for name in base if not torch.equal(after[name], before[name])] == []
    assert all(after[name].data_ptr() == storage[name] for name in base)
    assert not any(after[name].requires_grad for name in base)


def test_adapters_change_nothing_at_first(words, images, texts):
    plain = MODELS.decode({**words, **{side: {**words[side], "lora": None} for side in SIDES}}).build()
    adapted = MODELS.decode(words).build()
    initialise_from_live(adapted, plain)
    for ours, theirs in zip(rows(adapted, images, texts), rows(plain, images, texts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def initialise_from_live(model, plain):
    missing, unexpected = model.load_state_dict(model.own_state(plain.state_dict()), strict=False)
    assert not unexpected and all(".lora_" in name for name in missing)


def test_the_merged_save_gives_equal_outputs(words, images, texts, tmp_path):
    model = train(MODELS.decode(words).build(), images, texts)
    save(model, tmp_path / "saved")
    loaded = load(tmp_path / "saved").model
    assert not any(".lora_" in name for name in loaded.state_dict())
    for ours, theirs in zip(rows(model, images, texts), rows(loaded, images, texts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)
    again = MODELS.decode(words).build()
    initialise(again, tmp_path / "saved")
    for ours, theirs in zip(rows(again, images, texts), rows(loaded, images, texts), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_peft_loads_each_adapter_folder_onto_the_untrained_tower(words, images, texts, tmp_path):
    from peft import PeftModel

    torch.manual_seed(1)
    model = MODELS.decode(words).build()
    torch.manual_seed(1)
    plain = MODELS.decode({**words, **{side: {**words[side], "lora": None} for side in SIDES}}).build().eval()
    initialise_from_live(model, plain)
    train(model, images, texts).eval()
    save(model, tmp_path / "saved")
    for side, items in (("image", images), ("text", texts)):
        net = plain.tower(side).net
        attention.split(net)
        PeftModel.from_pretrained(net, tmp_path / "saved" / f"{side}_adapter")
        with torch.no_grad():
            inputs = plain.tower(side).process(items)
            ours, theirs = model.tower(side)(inputs), plain.tower(side)(inputs)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_transformers_models_take_the_adapters_whole(hf_clip_id, images, texts, tmp_path):
    from peft import PeftModel
    from transformers import CLIPModel

    lora = {"lora": {"rank": 2, "target": ["q_proj", "v_proj"]}}
    model = train(
        MODELS.decode({"name": "hf_clip", "id": hf_clip_id, "text": lora}).build(), images, texts
    ).eval()
    save(model, tmp_path / "saved")
    whole = PeftModel.from_pretrained(
        CLIPModel.from_pretrained(hf_clip_id), tmp_path / "saved" / "text_adapter"
    )
    ids = model.text.process(texts)["input_ids"]
    with torch.no_grad():
        theirs = whole.get_text_features(input_ids=ids).pooler_output
        ours = model.text({"input_ids": ids})
    assert not (tmp_path / "saved" / "image_adapter").exists()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_targets_choose_layers_and_unknown_ones_are_refused(open_clip_id):
    def build(target):
        return MODELS.decode(
            {"name": "open_clip", "id": open_clip_id, "text": {"lora": {"target": target}}}
        ).build()

    model = build(["q_proj", "c_fc"])
    assert {name.rpartition(".")[2] for name in model.text.adapters.layers} == {"q_proj", "c_fc"}
    assert len(model.text.adapters.layers) == 4 and model.image.adapters is None
    with pytest.raises(
        UserError, match="model.text: lora.target: no Linear layer .* named 'query'; it has: c_fc"
    ):
        build(["query"])


def test_gradient_checkpointing_gives_equal_adapter_gradients(words, images, texts):
    grads = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = MODELS.decode(words).build()
        if checkpointed:
            model.gradient_checkpointing()
        model.train()
        torch.manual_seed(1)
        batch = {"query": model.image.process(images), "key": model.text.process(texts)}
        out = model(batch)
        (out.query @ out.key.T).diagonal().sum().backward()
        grads.append(
            {name: p.grad for name, p in model.named_parameters() if p.grad is not None and "lora_B" in name}
        )
    assert grads[0].keys() == grads[1].keys() and len(grads[0]) > 10
    for name in grads[0]:
        torch.testing.assert_close(grads[0][name], grads[1][name], rtol=1e-5, atol=1e-6)


def test_a_tower_without_linear_layers_is_named(bert_id):
    image = {"name": "timm", "id": "test_resnet", "lora": {}}
    text = {"name": "hf_text", "id": bert_id}
    with pytest.raises(UserError, match="model.image: lora: this tower has no Linear layer"):
        MODELS.decode({"name": "dual_encoder", "dim": 8, "image": image, "text": text}).build()
