from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlalign
from vlalign.infer.load import picture
from vlalign.types import UserError

TINY = "recipes/tiny/open_clip"  # a config without weights: random ones


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vlalign.load(TINY)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def test_paths_and_pictures_of_any_mode_give_equal_rows(model, image, tmp_path):
    image.save(tmp_path / "image.png")
    items = [image, tmp_path / "image.png", str(tmp_path / "image.png"), image.convert("RGBA")]
    rows = model.encode_image(items)
    assert all(torch.equal(rows[0], row) for row in rows)
    scores = model.score(["a cat"], [[*items[:2], Path(items[2]), items[3]]])  # here a string is a text
    torch.testing.assert_close(scores[0], rows @ model.encode_text(["a cat"])[0])


def test_transparency_lies_on_white_wherever_a_picture_comes_from(image, tmp_path):
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    for given in (image, tmp_path / "clear.png"):
        assert np.asarray(picture(given)).min() == 255


def test_a_file_that_is_no_picture_is_named(model, tmp_path):
    (tmp_path / "note.txt").write_text("words")
    with pytest.raises(UserError, match=r"note.txt: not_an_image"):
        model.encode_image([tmp_path / "note.txt"])
    with pytest.raises(UserError, match=r"none.png: missing_file"):
        model.encode_image([tmp_path / "none.png"])


def test_what_cannot_be_loaded_or_opened_is_a_sentence(model):
    with pytest.raises(UserError, match="an image must be a PIL image or a path, got NoneType"):
        model.encode_image([None])
    with pytest.raises(UserError, match="batch must be >= 1, got 0"):
        vlalign.load(TINY, batch=0)
    with pytest.raises(UserError, match="model: '' names nothing"):
        vlalign.load("")
    with pytest.raises(UserError, match="device: 'warp' cannot be used on this machine"):
        vlalign.load(TINY, device="warp")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told():
    with pytest.raises(UserError, match="device: 'cuda' cannot be used"):
        vlalign.load(TINY, device="cuda")


def test_public_names():
    assert set(dir(vlalign)) == {"load", "load_recipe", "Embeddings", "__version__"}
    with pytest.raises(AttributeError, match="vlalign has no 'lod'"):
        _ = vlalign.lod


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_one_lazy_picture_many_times_is_whole_each_time(model, tmp_path, kind):
    large = np.random.default_rng(1).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / f"large.{kind}")
    batch = model.batch
    model.batch = 4
    try:
        wanted = model.encode_image([tmp_path / f"large.{kind}"])
        for _ in range(5):
            with Image.open(tmp_path / f"large.{kind}") as lazy:
                rows = model.encode_image([lazy] * 8)
            torch.testing.assert_close(rows, wanted.expand(8, -1), rtol=0, atol=1e-6)
    finally:
        model.batch = batch
