"""A tower and a language model put together: each as it was, tokens in the grid's order, saved and read."""

import pytest
import timm
import torch
import transformers
from PIL import Image

from tests.language_models import language_model
from tests.multimodal_models import picture
from vlalign.models import causal, grid_tower
from vlalign.models.assembly import CHAT, Assembly
from vlalign.models.grid_tower import GridTower, GridTowerConfig
from vlalign.models.pictures import Pictures
from vlalign.types import UserError

TOWER = "test_efficientnet"  # 32 pixels a cell


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return str(language_model(tmp_path_factory.mktemp("lm"), "llama"))


def made(language, size=64, dtype="float32", **fields):
    torch.manual_seed(0)
    net, processor = Assembly(language=language, tower=TOWER, image_size=size, **fields).build(dtype)
    return net.eval(), processor


@torch.no_grad()
def test_the_towers_tokens_are_its_cells_row_by_row():
    torch.manual_seed(0)
    tower = GridTower(GridTowerConfig(architecture=TOWER, image_size=96)).eval()
    pixels = torch.randn(2, 3, 96, 64)
    found = tower(pixels)
    grid = tower.net.forward_features(pixels)  # [2, C, 3, 2]
    assert grid.shape[2:] == (3, 2) and tower.grid(96)[-1] == 3
    for row in range(3):
        for column in range(2):
            token = found.last_hidden_state[:, 2 * row + column]
            torch.testing.assert_close(token, grid[:, :, row, column])
    assert found.hidden_states[-1] is found.last_hidden_state


@torch.no_grad()
def test_the_language_model_is_as_it_was(language):
    net, processor = made(language)
    alone, tokenizer = causal.load(language, True, "float32")
    ids = tokenizer(["a red car and a small cat"], return_tensors="pt")["input_ids"]
    assert torch.equal(
        processor.tokenizer(["a red car and a small cat"], return_tensors="pt")["input_ids"], ids
    )
    words = len(tokenizer)
    torch.testing.assert_close(net(input_ids=ids).logits[..., :words], alone.eval()(input_ids=ids).logits)
    assert len(processor.tokenizer) == words + 1 == len(net.get_input_embeddings().weight)


@pytest.mark.parametrize("size", [32, 64, 100])
@torch.no_grad()
def test_a_picture_has_as_many_tokens_as_cells_and_is_seen(size, language):
    net, processor = made(language, size)
    cells = ((size + 31) // 32) ** 2
    ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<image>What?<|im_end|>\n<|im_start|>assistant\n"
    logits = []
    for image in (picture(0, 50, 70), picture(1)):
        inputs = processor(text=[text], images=[[image]], return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, size, size)
        assert int((inputs["input_ids"] == net.config.image_token_index).sum()) == cells
        logits.append(net(**inputs).logits[0, -1])
        assert Pictures(processor).read(image).tokens == cells
    assert (logits[0] - logits[1]).abs().max() > 1e-4


@torch.no_grad()
def test_features_are_the_projected_cells_of_the_whole_picture(language):
    """Left and right halves of two colours: the tower is shown what timm itself is shown."""
    net, processor = made(language)
    image = Image.new("RGB", (80, 40), "red")
    image.paste("blue", (40, 0, 80, 40))
    pixels = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    mean, std = (
        torch.tensor(processor.image_processor.to_dict()[f"image_{part}"]) for part in ("mean", "std")
    )
    shown = pixels[0].permute(1, 2, 0) * std + mean
    torch.testing.assert_close(shown[:, :24], torch.tensor([1.0, 0, 0]).expand(64, 24, 3), atol=0.01, rtol=0)
    torch.testing.assert_close(shown[:, 40:], torch.tensor([0.0, 0, 1]).expand(64, 24, 3), atol=0.01, rtol=0)
    cells = net.base_model.vision_tower(pixels).last_hidden_state
    [found] = net.base_model.get_image_features(pixel_values=pixels, return_dict=True).pooler_output
    torch.testing.assert_close(found, net.base_model.multi_modal_projector(cells)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_saved_and_reloaded_it_is_equal(dtype, language, tmp_path):
    net, processor = made(language, dtype=dtype)
    causal.write(net, processor, net.state_dict(), tmp_path)
    grid_tower.register()
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    reader = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert again.dtype == net.dtype
    state, found = net.state_dict(), again.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], x) for name, x in state.items())
    image = picture(3)
    for own in (processor, reader):
        inputs = own(text=["<image>a cat"], images=[[image]], return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(net.dtype)
        logits = [each(**inputs).logits for each in (net, again)]
        assert torch.equal(*logits)
    assert reader.chat_template == CHAT


def test_the_towers_weights_are_those_of_its_file(language, tmp_path):
    torch.manual_seed(5)
    net = timm.create_model(TOWER, num_classes=7)
    torch.save(net.state_dict(), tmp_path / "tower.pth")
    found = made(language, weights=str(tmp_path / "tower.pth"))[0].base_model.vision_tower.net.state_dict()
    assert found and all(torch.equal(x, net.state_dict()[name]) for name, x in found.items())


def test_random_weights_where_they_are_asked_for(language):
    one = made(language)[0]
    torch.manual_seed(7)
    other = Assembly(language=language, tower=TOWER, pretrained=False).build("float32")[0]
    weights = [each.get_decoder().layers[0].mlp.up_proj.weight for each in (one, other)]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)


def test_batch_norm_keeps_its_statistics(language):
    net, _ = made(language)
    tower = net.train().base_model.vision_tower
    before = {name: x.clone() for name, x in tower.state_dict().items() if "running" in name}
    tower(torch.randn(4, 3, 64, 64))
    after = tower.state_dict()
    assert before and all(torch.equal(after[name], x) for name, x in before.items())


def test_a_tower_that_timm_does_not_know_is_refused(language):
    with pytest.raises(UserError, match="tower: timm cannot build 'no_such_network'"):
        Assembly(language=language, tower="no_such_network").build("float32")
    with pytest.raises(UserError, match="nowhere"):
        Assembly(language="/nowhere").build("float32")


@pytest.mark.parametrize("tower", ["test_vit", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("size", [100, 224])
def test_a_tower_without_a_grid_is_refused(tower, size, language):
    with pytest.raises(UserError, match=f"tower: .*'{tower}'"):
        Assembly(language=language, tower=tower, image_size=size).build("float32")


def test_a_picture_has_a_size(language):
    with pytest.raises(ValueError, match="image_size must be >= 1, got 0"):
        Assembly(language=language, image_size=0)
