"""What tells pictures apart at a look, and how well scores do."""

import numpy as np
import pytest
import torch
from PIL import Image

from vlalign.evals.attribute import by_looks, look, told_apart
from vlalign.types import UserError


def pictures(count, seed, level=(128, 128, 128)):
    random = np.random.default_rng(seed)
    for _ in range(count):
        pixels = (np.array(level) + random.integers(-60, 61, (9, 7, 3))).clip(0, 255)
        yield Image.fromarray(pixels.astype(np.uint8))


def test_a_look_is_brightness_and_a_histogram_counted_by_hand():
    (image,) = pictures(1, 0, (90, 160, 20))
    found, counts, greys = look(image), np.zeros((4, 4, 4)), []
    for red, green, blue in np.asarray(image).reshape(-1, 3).tolist():
        counts[red // 64, green // 64, blue // 64] += 1 / 63
        greys.append((0.299 * red + 0.587 * green + 0.114 * blue) / 255)
    np.testing.assert_allclose(found[2:], counts.ravel())
    np.testing.assert_allclose(found[:2], [np.mean(greys), np.std(greys)], atol=0.5 / 255)


def test_signs_and_order_of_scores():
    positive, negative = torch.tensor([0.3, 0.1, -0.2, 0.4]), torch.tensor([-0.5, 0.2])
    found = told_apart(positive, negative)
    assert found["accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found["auc"] == pytest.approx(6 / 8)  # of eight pairs, 0.1 and -0.2 lie below 0.2
    with pytest.raises(UserError, match="AUC needs right and wrong"):
        told_apart(positive, negative[:0])


def test_what_a_look_tells_is_found_and_what_it_does_not_tell_is_not():
    def looks(count, seed, level):
        return np.stack([look(each) for each in pictures(count, seed, level)])

    reds = [(160, 90, 90), (90, 128, 90)]  # of about equal grey
    grey = 0.299 * 160 + 0.701 * 90 - 0.587 * 128 - 0.413 * 90
    assert abs(grey) < 2
    fitted, unseen = ([looks(24, seed + at, level) for at, level in enumerate(reds)] for seed in (0, 2))
    found = by_looks(*fitted, tuple(unseen))
    assert found["colours"]["auc"] == 1 and found["luminance"]["auc"] < 0.9
    bright = by_looks(looks(24, 0, (150,) * 3), looks(6, 1, (90,) * 3), (fitted[0] * 0 + 0.6, fitted[1] * 0))
    assert bright["luminance"] == {"auc": 1.0, "accuracy": 1.0}
