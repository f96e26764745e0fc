import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import cosine_similarity, normalize

from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.feature_cache import FeatureCache, tower_key
from vlalign.models.weights import load, save
from vlalign.ops.patches import chosen
from vlalign.registry import MODELS, TOWERS
from vlalign.types import UserError


@pytest.fixture
def spec(bert_id):
    image = {"name": "timm", "id": "test_efficientnet", "image_size": 64, "crop_pct": 1.0}
    text = {"name": "hf_text", "id": bert_id}
    return {"name": "patch_encoder", "image": image, "text": text, "dim": 16}


@pytest.fixture
def batch(images, texts):
    def of(model):
        image, text = model.processors()
        return {"query": image(images), "key": text(texts)}

    return of


def unpooled(name, **fields):
    tower = TOWERS.decode({"name": name, **fields}).build("image", 16).eval()
    tower.unpool()
    return tower


@pytest.mark.parametrize(
    ("id", "size", "count"),
    [("test_efficientnet", 64, 4), ("resnet10t", 64, 4), ("swin_s3_tiny_224", 128, 16), ("test_vit", 64, 16)],
)
def test_patches_of_timm_are_what_it_pools(id, size, count, images):
    tower = unpooled("timm", id=id, image_size=size)
    pixels = tower.process(images)["pixels"]
    with torch.no_grad():
        patches, whole = tower({"pixels": pixels}), tower.net.forward_features(pixels)
        assert patches.shape == (4, count, tower.width)
        if id == "test_vit":  # its class token is no patch
            assert torch.equal(patches, whole[:, 1:])
        else:
            torch.testing.assert_close(patches.mean(1), tower.net(pixels), rtol=1e-4, atol=1e-5)


def test_patches_come_row_by_row():
    tower = unpooled("timm", id="test_efficientnet", image_size=128)
    dark, dotted = Image.new("RGB", (128, 128)), Image.new("RGB", (128, 128))
    dotted.paste("white", (120, 0, 128, 8))  # the upper right corner
    with torch.no_grad():
        one, other = tower(tower.process([dark, dotted]))
    assert len(one) == 16 and (one - other).norm(dim=-1).argmax() == 3


def test_patches_of_transformers_are_its_last_states(vit_id, images):
    tower = unpooled("hf_vision", id=vit_id)
    inputs = tower.process(images)
    with torch.no_grad():
        states = tower.net(pixel_values=inputs["pixels"]).last_hidden_state
        assert torch.equal(tower(inputs), states[:, 1:]) and states.shape[1] == 5
        tower.net.config.patch_size = 2
        with pytest.raises(UserError, match="gives 5 states of a picture, not one for each of its patches"):
            tower(inputs)


def test_towers_without_patches_are_refused(spec, open_clip_id):
    with pytest.raises(UserError, match=r"model\.image: a tower of open_clip_torch gives a picture whole"):
        MODELS.decode(spec | {"image": {"name": "open_clip", "id": open_clip_id}}).build()
    for id in ("pit_ti_224", "coat_tiny"):  # a class token that is not counted, and grids of several sizes
        with pytest.raises(UserError, match="of timm does not tell which of its features are patches"):
            MODELS.decode(spec | {"image": {"name": "timm", "id": id}}).build()


@pytest.mark.parametrize(("field", "value"), [("share", 0), ("share", 1.5), ("temperature", 0)])
def test_mistakes_are_sentences(spec, field, value):
    with pytest.raises(ValidationError, match=f"{field} must be > 0"):
        MODELS.decode(spec | {field: float(value)})


def test_a_picture_is_what_its_text_chooses(spec, batch):
    model = MODELS.decode(spec | {"share": 0.5}).build().eval()
    inputs = batch(model)
    out = model(inputs)
    patches = model.image_head(model.image(inputs["query"]))
    assert torch.equal(out.key, model.encode_text(inputs["key"])) and patches.shape[::2] == (4, 16)
    rows, _ = chosen(patches, out.key[:, None], 0.5, 0.1)
    torch.testing.assert_close(out.query, rows[:, 0])
    torch.testing.assert_close(model.encode_image(inputs["query"]), normalize(patches.mean(1), dim=-1))
    torch.testing.assert_close(model.encode_patches(inputs["query"]), normalize(patches, dim=-1))
    with pytest.raises(UserError, match="learns from pictures with captions, and these are queries"):
        model(inputs | {"towers": ("text", "text")})


def test_all_patches_alike_are_a_dual_encoder(spec, batch):
    model = MODELS.decode(spec | {"share": 1.0, "temperature": None}).build().eval()
    plain = MODELS.decode(spec | {"name": "dual_encoder"}).build().eval()
    plain.load_state_dict(model.state_dict())
    for one, other in zip(
        model(batch(model)).tensors().values(), plain(batch(plain)).tensors().values(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_it_is_saved_and_embeds_pictures_texts_and_patches(spec, images, texts, tmp_path):
    model = MODELS.decode(spec).build().eval()
    save(model, tmp_path / "model")
    loaded, live = load(tmp_path / "model"), DualEncoderEmbedder(model)
    assert loaded.model.share == 0.1 and loaded.encode_image([]).shape == (0, 16)
    for name, items in (("encode_image", images), ("encode_text", texts), ("encode_patches", images)):
        torch.testing.assert_close(getattr(loaded, name)(items), getattr(live, name)(items))
    patches = loaded.encode_patches(images)
    assert patches.ndim == 3
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(patches.shape[:2]))
    whole = DualEncoderEmbedder(MODELS.decode(spec | {"name": "dual_encoder"}).build())
    with pytest.raises(UserError, match="take a patch_encoder"):
        whole.encode_patches(images)


def test_patches_are_cached_under_a_key_of_their_own(spec, images, tmp_path):
    model = MODELS.decode(spec | {"image": spec["image"] | {"lock": True}}).build()
    whole = MODELS.decode(spec | {"name": "dual_encoder"}).build()
    whole.load_state_dict(model.state_dict())
    assert tower_key(model.image) != tower_key(whole.image)
    cache = FeatureCache.of(model.image, tmp_path)
    first = DualEncoderEmbedder(model, caches={"image": cache}).encode_patches(images)
    again = DualEncoderEmbedder(model, caches={"image": FeatureCache.of(model.image, tmp_path)})
    assert len(cache) == 4 and torch.equal(again.encode_patches(images), first)


def test_what_is_seen_is_a_picture_again_and_a_box_is_where_it_was(spec):
    embedder = DualEncoderEmbedder(MODELS.decode(spec).build())
    mask = Image.new("RGB", (64, 64))
    mask.paste("white", (32, 0, 64, 32))
    seen = embedder.seen([mask, Image.new("RGB", (30, 40), (51, 102, 204))])
    assert seen.shape == (2, 3, 64, 64)
    wanted = torch.zeros(64, 64)
    wanted[:32, 32:] = 1
    torch.testing.assert_close(seen[0], wanted.expand(3, 64, 64), rtol=0, atol=1e-5)
    colour = torch.tensor([51, 102, 204]) / 255
    torch.testing.assert_close(seen[1, :, 20, 20], colour, rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("id", "asleep"),
    [("test_efficientnet", set()), ("test_convnext", {"head"}), ("mobilenetv3_small_050", {"conv_head"})],
)
def test_gradients_reach_the_towers_through_the_chosen_patches(id, asleep, spec, batch):
    """All but what only pooling needs, which does not wait for any."""
    model = MODELS.decode(spec | {"image": spec["image"] | {"id": id}}).build()
    out = model(batch(model))
    cosine_similarity(out.query, out.key.flip(0)).sum().backward()
    assert model.image_head.weight.grad.norm() > 0 and model.text_head.weight.grad.norm() > 0
    parameters = dict(model.image.net.named_parameters())
    assert all((p.grad is not None) == p.requires_grad for p in parameters.values())
    assert {name.split(".")[0] for name, p in parameters.items() if not p.requires_grad} == asleep
