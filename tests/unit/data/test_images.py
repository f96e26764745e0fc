import io
import pickle
import random
import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from tests.unit.data import pictures
from vlalign.data import images
from vlalign.data.augment import augment
from vlalign.data.images import decode, decode_cell, headers_only, opened
from vlalign.recipe.schemas import Augment
from vlalign.types import BadRow, Limits


def near(image, place, colour, tolerance=6):
    assert np.abs(np.array(image.getpixel(place)) - np.array(colour)).max() <= tolerance


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM"])
def test_every_common_format_is_read(form):
    image, conversions = decode(pictures.encoded(pictures.plain("red"), form))
    assert image.mode == "RGB" and image.size == (20, 12) and conversions == ()
    near(image, (3, 3), (255, 0, 0))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_is_kept(form):
    image, conversions = decode(pictures.animated(form))
    assert "animated" in conversions
    near(image, (3, 3), (255, 0, 0))


def test_cmyk_becomes_rgb():
    image, conversions = decode(pictures.cmyk())
    assert conversions == ("cmyk",)
    near(image, (3, 3), (255, 0, 0), 8)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(form):
    image, conversions = decode(pictures.grey16([[0, 257, 32896, 65535]], form))
    assert conversions == ("sixteen_bit",)
    assert [image.getpixel((column, 0))[0] for column in range(4)] == [0, 1, 128, 255]


def test_sixteen_bit_colour_is_counted():
    image, conversions = decode(pictures.rgb16(4, 3, (65535, 32768, 0)))
    assert conversions == ("sixteen_bit",)
    near(image, (1, 1), (255, 128, 0), 1)


def test_transparency_is_laid_on_white():
    image, conversions = decode(pictures.see_through_palette())
    assert conversions == ("transparent",)
    near(image, (2, 2), (255, 255, 255))
    near(image, (15, 2), (255, 0, 0))
    half, conversions = decode(pictures.encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128))))
    near(half, (1, 1), (255, 127, 127), 1)
    assert conversions == ("transparent",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    data = pictures.turned(orientation)
    image, conversions = decode(data)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert image.size == expected.size and image.tobytes() == expected.tobytes()
    assert conversions == (() if orientation == 1 else ("turned",))
    for form in ("JPEG", "PNG"):
        image, _ = decode(pictures.turned(orientation, form))
        assert opened(image).tobytes() == image.tobytes() and opened(image).size == image.size  # not again


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"%PDF-1.4 not a picture at all", "not_an_image"),
        ("<html>404</html>".encode("utf-16"), "not_an_image"),
        (pictures.huge(), "too_many_pixels"),
        (pictures.encoded(pictures.noise())[:200], "truncated"),
        (pictures.encoded(pictures.noise(), "JPEG")[:30], "truncated"),
        (pictures.encoded(pictures.noise(), "WEBP")[:60], "truncated"),
        (pictures.encoded(Image.fromarray(np.ones((3, 3), np.float32)), "TIFF"), "odd_depth"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
    ],
)
def test_reasons(data, reason):
    with pytest.raises(BadRow) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_limits_are_checked_before_decoding(monkeypatch, tmp_path):
    def never(*_):
        raise AssertionError("decoded")

    path = tmp_path / "big.bmp"
    path.write_bytes(pictures.encoded(pictures.noise(400, 300), "BMP"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    for limits, reason in ((Limits(bytes=1000), "too_many_bytes"), (Limits(pixels=1000), "too_many_pixels")):
        for source in (path, path.read_bytes()):
            with pytest.raises(BadRow) as caught:
                decode(source, limits)
            assert caught.value.reason == reason


def test_the_default_limit_refuses_168_megapixels_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anew = runpy.run_path(images.__file__)  # Pillow is silenced when it is imported, for all threads
        with pytest.raises(BadRow, match="12000 x 14000"):
            anew["decode"](pictures.huge())


def test_paths(tmp_path):
    for path, reason in (
        (tmp_path / "none.png", "missing_file"),
        (tmp_path / "none.png" / "inside", "missing_file"),
        (tmp_path, "unreadable_file"),
        (tmp_path / "a\0b", "unreadable_file"),
        (Path("/dev/zero"), "unreadable_file"),
    ):
        with pytest.raises(BadRow) as caught:
            decode(path)
        assert caught.value.reason == reason
    (tmp_path / "a.png").write_bytes(pictures.encoded(pictures.plain("red")))
    assert decode_cell(tmp_path, Limits(), "a.png")[0].size == (20, 12)
    assert decode_cell(tmp_path, Limits(), {"bytes": None, "path": "a.png"})[0].size == (20, 12)
    assert decode_cell(tmp_path, Limits(), {"bytes": (tmp_path / "a.png").read_bytes(), "path": None})
    for cell in (None, "", 7, {"bytes": None, "path": None}):
        with pytest.raises(BadRow) as caught:
            decode_cell(tmp_path, Limits(), cell)
        assert caught.value.reason == "missing_file"


@pytest.mark.parametrize(
    ("size", "draft", "wanted"),
    [
        ((800, 640), 100, (200, 160)),
        ((800, 640), 80, (100, 80)),
        ((801, 640), 81, (201, 160)),
        ((800, 300), 200, (800, 300)),
    ],
)
def test_a_draft_of_a_jpeg_keeps_each_side(size, draft, wanted):
    smooth = Image.linear_gradient("L").resize(size).convert("RGB")
    data = pictures.encoded(smooth, "JPEG", quality=95)
    image, conversions = decode(data, Limits(draft=draft))
    assert image.size == wanted and min(wanted) >= draft and conversions == ()
    small = decode(data)[0].resize(wanted, Image.Resampling.BOX)
    assert np.abs(np.asarray(image, int) - np.asarray(small, int)).max() <= 4


def test_a_draft_is_turned_counted_and_refused_like_a_whole_picture():
    limits = Limits(draft=50)
    grey = Image.linear_gradient("L").resize((400, 200)).convert("RGB")
    assert decode(pictures.turned(6, image=grey), limits)[1] == ("turned",)
    assert decode(pictures.turned(6, image=grey), limits)[0].size == (50, 100)
    assert decode(pictures.encoded(grey, "PNG"), limits)[0].size == (400, 200)
    with pytest.raises(BadRow, match="400 x 200 pixels, the limit is 100"):
        decode(pictures.encoded(grey, "JPEG"), Limits(draft=50, pixels=100))
    with pytest.raises(BadRow) as caught:
        decode(pictures.encoded(grey, "JPEG")[:-600], limits)
    assert caught.value.reason == "truncated"
    with pytest.raises(ValueError, match="draft must be >= 1, got 0"):
        Limits(draft=0)


def test_no_damage_escapes_as_another_error():
    """3,000 files with bytes overwritten or cut off: a picture or a BadRow, never anything else."""
    whole = [
        pictures.encoded(pictures.noise(), form) for form in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
    ]
    whole += [pictures.animated("PNG"), pictures.turned(6), pictures.turned(6, "PNG"), pictures.cmyk()]
    random.seed(0)
    for _ in range(3000):
        data = bytearray(random.choice(whole))
        for _ in range(random.choice((1, 4, 30))):
            data[random.randrange(len(data))] = random.randrange(256)
        if random.random() < 0.3:
            data = data[: random.randrange(1, len(data))]
        try:
            image, _ = decode(bytes(data))
        except BadRow:
            continue
        assert image.mode == "RGB"


def test_broken_exif_costs_no_picture():
    data = pictures.turned(6)
    broken = data.replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0\xff").replace(
        b"Exif\0\0II*\0", b"Exif\0\0II\xff\xff"
    )
    assert broken != data
    assert decode(broken)[0].size == (20, 12)


def test_augmentation_is_a_function_of_its_generator():
    image, how = pictures.noise(64, 40), Augment(scale=(0.3, 1.0), flip=True)
    first, again, other = (augment(image, np.random.default_rng(seed), how).tobytes() for seed in (1, 1, 2))
    assert first == again != other


def test_crops_have_the_area_that_was_asked_for_and_flips_are_half():
    image = pictures.noise(90, 60)
    areas = []
    for seed in range(300):
        crop = augment(image, np.random.default_rng(seed), Augment(scale=(0.2, 0.6)))
        assert crop.width == crop.height
        areas.append(crop.width**2 / (90 * 60))
    assert min(areas) >= 0.18 and max(areas) <= 0.63 and abs(np.mean(areas) - 0.4) < 0.03
    flips = [augment(image, np.random.default_rng(seed), Augment(flip=True)) != image for seed in range(300)]
    assert 110 < sum(flips) < 190


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (300, 2)])
def test_a_picture_of_any_shape_can_be_cropped(size):
    for seed in range(20):
        assert (
            min(augment(pictures.noise(*size), np.random.default_rng(seed), Augment(scale=(0.1, 0.9))).size)
            >= 1
        )


def test_headers_alone_are_read_where_only_sizes_are_asked_for():
    cut = pictures.encoded(pictures.noise(64, 40), "JPEG")[:700]
    with headers_only():
        assert decode(cut)[0].size == (64, 40)
        assert decode(pictures.turned(6))[0].size == (20, 12)
        with pytest.raises(BadRow) as caught:
            decode(pictures.encoded(pictures.noise()), Limits(pixels=100))
        assert caught.value.reason == "too_many_pixels"
    with pytest.raises(BadRow) as caught:
        decode(cut)
    assert caught.value.reason == "truncated"
