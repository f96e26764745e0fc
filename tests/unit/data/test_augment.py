import colorsys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.unit.data import pictures
from vlalign.data.augment import augment
from vlalign.recipe.augmentation import Affine, Augment, Blur, Jitter

PICTURE = pictures.noise(15, 10).resize((60, 40), Image.Resampling.BICUBIC)
STRONG = Augment(
    scale=(0.3, 1.0),
    flip=True,
    affine=Affine(degrees=20, translate=0.1, scale=(0.95, 1.05)),
    jitter=Jitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    grey=0.2,
    blur=Blur(probability=0.5, sigma=(0.1, 2.0)),
)


def random(seed=0):
    return np.random.default_rng(seed)


def pixels(image):
    return np.asarray(image).astype(int)


def difference(one, other):
    return np.abs(pixels(one) - pixels(other))


def test_a_picture_is_a_pure_function_of_the_generator():
    changed = [augment(PICTURE, random(seed), STRONG).tobytes() for seed in [*range(20), *range(20)]]
    assert changed[:20] == changed[20:] and len(set(changed)) == 20
    assert all(augment(PICTURE, random(seed), STRONG).mode == "RGB" for seed in range(20))


def test_what_is_off_draws_nothing():
    still = random()
    assert augment(PICTURE, still, Augment()) is PICTURE and still.random() == random().random()
    for seed in range(10):
        off, flip = random(seed), random(seed)
        augment(PICTURE, off, Augment(flip=True))
        flip.random()
        assert off.random() == flip.random()


def test_today_s_draws_are_what_they_were():
    """Sums of pixels that the crop and the flip gave before there was anything else."""
    how = Augment(scale=(0.4, 1.0), flip=True)
    found = [int(pixels(augment(pictures.noise(64, 40), random(seed), how)).sum()) for seed in range(4)]
    assert found == [416387, 675559, 552922, 443771]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scale", (0.5, 1.0)),
        ("flip", True),
        ("affine", Affine(degrees=10)),
        ("jitter", Jitter(hue=0.1)),
        ("grey", 0.1),
        ("blur", Blur()),
    ],
)
def test_whatever_changes_pictures_is_no_identity(field, value):
    assert Augment().identity and not Augment(**{field: value}).identity


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "hue"])
def test_a_strength_changes_its_own_quality(field):
    how = Augment(jitter=Jitter(**{field: 0.4}))
    found = [augment(PICTURE, random(seed), how) for seed in range(50)]
    before, after = pixels(PICTURE.convert("HSV")), [pixels(image.convert("HSV")) for image in found]
    assert len({image.tobytes() for image in found}) > 40
    if field == "brightness":
        factors = [image.mean() / pixels(PICTURE).mean() for image in map(pixels, found)]
        assert 0.6 <= min(factors) < 0.7 and 1.2 < max(factors) < 1.4
    if field == "contrast":
        spreads = [pixels(image.convert("L")).std() / pixels(PICTURE.convert("L")).std() for image in found]
        assert 0.55 < min(spreads) < 0.7 and 1.2 < max(spreads) < 1.45
    if field == "saturation":
        grey = [difference(image.convert("L"), PICTURE.convert("L")).mean() for image in found]
        assert max(grey) < 3 and min(image[..., 1].mean() for image in after) < 0.8 * before[..., 1].mean()
    if field == "hue":
        assert max(np.abs(image[..., 2] - before[..., 2]).max() for image in after) <= 2


def test_hue_is_turned_on_the_colour_circle():
    for seed in range(5):
        draws = random(seed)
        draws.random(), draws.permutation(4)
        part = draws.uniform(-0.5, 0.5)
        mine = augment(PICTURE, random(seed), Augment(jitter=Jitter(hue=0.5)))
        expected = [
            colorsys.hsv_to_rgb((hue + part) % 1, saturation, value)
            for hue, saturation, value in (
                colorsys.rgb_to_hsv(*each) for each in pixels(PICTURE).reshape(-1, 3)
            )
        ]
        assert np.mean(np.abs(pixels(mine).reshape(-1, 3) - expected)) < 2
        assert np.mean(difference(mine, PICTURE)) > 5


def test_affine_moves_a_point_to_where_the_matrix_says():
    for seed in range(8):
        draws = random(seed)
        turn, zoom, shift = draws.uniform(-30, 30), draws.uniform(0.8, 1.2), draws.uniform(-0.1, 0.1, size=2)
        dot = Image.new("RGB", (120, 80))
        dot.paste("white", (30, 20, 36, 26))  # its middle is (33, 23)
        how = Affine(degrees=30, translate=0.1, scale=(0.8, 1.2))
        moved = pixels(augment(dot, random(seed), Augment(affine=how)))[..., 0]
        middle, angle = np.array([60, 40]), np.radians(turn)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * zoom
        expected = middle + shift * [120, 80] + matrix @ (np.array([33, 23]) - middle)
        rows, columns = np.indices(moved.shape) + 0.5
        found = [(columns * moved).sum() / moved.sum(), (rows * moved).sum() / moved.sum()]
        np.testing.assert_allclose(found, expected, atol=0.1)
        assert moved.sum() == pytest.approx(36 * 255 * zoom**2, rel=0.1)


def test_an_affine_of_nothing_changes_nothing_and_a_turn_leaves_black_corners():
    assert augment(PICTURE, random(), Augment(affine=Affine())).tobytes() == PICTURE.tobytes()
    white = Image.new("RGB", (40, 40), "white")
    turned = augment(white, random(0), Augment(affine=Affine(degrees=45)))
    assert turned.getpixel((0, 0)) == (0, 0, 0) and turned.getpixel((20, 20)) == (255, 255, 255)


def test_blur_is_in_proportion_to_the_picture():
    how = Augment(blur=Blur(sigma=(4.0, 4.0)))
    large = PICTURE.resize((60 * 8, 40 * 8), Image.Resampling.BICUBIC)
    one = augment(large, random(), how).resize(PICTURE.size, Image.Resampling.BOX)
    other = augment(PICTURE, random(), how)
    assert other.tobytes() == PICTURE.filter(ImageFilter.GaussianBlur(4 * 40 / 224)).tobytes()
    assert np.mean(difference(one, other)) < 2


@pytest.mark.parametrize(
    "how",
    [
        Augment(grey=0.3),
        Augment(blur=Blur(probability=0.3, sigma=(5.0, 5.0))),
        Augment(jitter=Jitter(probability=0.3, brightness=0.9)),
        Augment(flip=True),
    ],
)
def test_probabilities(how):
    share = 0.5 if how.flip else 0.3
    changed = sum(augment(PICTURE, random(seed), how) != PICTURE for seed in range(400))
    assert abs(changed / 400 - share) < 4 * (share * (1 - share) / 400) ** 0.5


def test_grey_has_equal_channels():
    grey = pixels(augment(PICTURE, random(), Augment(grey=1.0)))
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == pixels(PICTURE.convert("L"))).all()


@pytest.mark.parametrize(
    ("what", "fields", "told"),
    [
        (Augment, {"grey": 1.5}, "grey must be between 0 and 1, got 1.5"),
        (Augment, {"scale": (0.0, 1.0)}, "scale must be 0 < low <= high <= 1"),
        (Augment, {"ratio": (2.0, 1.0)}, "ratio must be 0 < low <= high"),
        (Affine, {"degrees": 181}, "degrees must be between 0 and 180, got 181"),
        (Affine, {"translate": -0.1}, "translate must be between 0 and 1, got -0.1"),
        (Affine, {"scale": (1.1, 1.0)}, "scale must be 0 < low <= high"),
        (Jitter, {"probability": 2}, "probability must be between 0 and 1, got 2"),
        (Jitter, {"contrast": -1}, "contrast must be between 0 and 1, got -1"),
        (Jitter, {"hue": 0.6}, "hue must be between 0 and 0.5, got 0.6"),
        (Blur, {"sigma": (0.0, 1.0)}, "sigma must be 0 < low <= high"),
        (Blur, {"probability": -1}, "probability must be between 0 and 1, got -1"),
    ],
)
def test_ranges(what, fields, told):
    with pytest.raises(ValueError, match=told):
        what(**fields)
