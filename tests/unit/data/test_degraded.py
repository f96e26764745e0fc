"""Folders of pictures, and pictures made worse."""

import json

import numpy as np
import pytest
from PIL import Image

from vlalign.data.sources.degraded import degrade
from vlalign.registry import SOURCES, encode
from vlalign.types import BadRow, DataError


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name in ("b/two.PNG", "b/one.png", "a.jpg", "b/.hidden/three.png", "b/notes.txt", "c/damaged.webp"):
        path = tmp_path / "art" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt" or path.stem == "damaged":
            path.write_text("no picture")
        else:
            Image.fromarray(random.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "art"


def built(folder, **how):
    plain = {"name": "folder", "path": str(folder)}
    return SOURCES.decode({"name": "degraded", "source": plain, **how} if how else plain).build()


def test_a_folder_has_its_pictures_by_name_and_nothing_else(folder):
    source = built(folder)
    ids = ["a.jpg", "b/one.png", "b/two.PNG", "c/damaged.webp"]
    assert [source.fields(row)["id"] for row in range(len(source))] == ids
    assert [source.fields(row)["label"] for row in range(4)] == ["art", "b", "b", "c"]
    assert source.captions(1) == ("one",) and source[1]["image"].size == (40, 48)
    with pytest.raises(BadRow) as error:
        source[3]
    assert error.value.reason == "not_an_image"
    with pytest.raises(DataError, match="nowhere is no folder"):
        built(folder / "nowhere")
    with pytest.raises(DataError, match="hidden has no usable row; skipped: none"):
        (folder / "hidden").mkdir()
        built(folder / "hidden")


def test_values_are_raised_to_gamma_and_doubled_by_stops(folder):
    pixels = np.asarray(built(folder)[1]["image"])
    for how, gamma, stops in (({"gamma": [2.5, 2.5]}, 2.5, 0), ({"exposure": [-1.5, -1.5]}, 1, -1.5)):
        found = np.asarray(built(folder, **how)[1]["image"])
        wanted = (pixels / 255) ** gamma * 2.0**stops * 255
        assert np.abs(found - wanted).max() <= 0.5 + 1e-9
    lit = np.asarray(degrade(built(folder)[1]["image"], stops=1.0))
    assert (lit == np.minimum(2 * pixels.astype(int), 255)).all()


def test_a_blur_is_as_wide_on_a_picture_twice_as_large(folder):
    image = built(folder)[1]["image"]
    found = built(folder, blur=[12.0, 12.0])[1]["image"]
    assert np.asarray(found).std() < np.asarray(image).std() / 2
    large = degrade(image.resize((400, 480), Image.Resampling.BICUBIC), width=12.0)
    small = np.asarray(large.resize((40, 48), Image.Resampling.BOX)).astype(float)
    assert np.abs(small - np.asarray(found)).mean() < 4  # of 255


def test_strengths_are_drawn_by_the_seed_and_the_place_alone(folder):
    how = {"gamma": [1.0, 4.0], "exposure": [-2.0, 0.0], "blur": [0.0, 9.0]}
    first, again, other = built(folder, **how), built(folder, **how), built(folder, seed=1, **how)
    pixels = [np.asarray(source[row]["image"]) for row in (2, 0) for source in (first, again, other)]
    assert (pixels[0] == pixels[1]).all() and (pixels[3] == pixels[4]).all()
    assert (pixels[0] != pixels[2]).any()
    assert first.captions(2) == ("two",) and first.fields(2)["id"] == first[2]["id"] == "b/two.PNG"
    assert (np.asarray(built(folder, gamma=[1.0, 1.0])[0]["image"]) == built(folder)[0]["image"]).all()
    with pytest.raises(BadRow):
        first[3]


def test_it_survives_a_recipe_and_refuses_what_is_no_range(folder):
    spec = SOURCES.decode(
        {"name": "degraded", "source": {"name": "folder", "path": "x"}, "gamma": [1.5, 3.0]}
    )
    assert SOURCES.decode(json.loads(json.dumps(encode(spec, component=True)))) == spec
    for how, told in (
        ({"gamma": [3.0, 1.0]}, "gamma must be low <= high, and no more than 100.0, got \\[3.0, 1.0\\]"),
        ({"gamma": [0.0, 1.0]}, "gamma must be > 0"),
        ({"blur": [-1.0, 1.0]}, "blur must be >= 0"),
        ({"seed": -1}, "seed must be >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=told):
            built(folder, **how)
