"""The joined embedding of several models: unit rows whose cosine is the mean of the stages' cosines."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.unit.models.conftest import OPEN_CLIP, open_clip_folder
from vlalign.infer.load import load
from vlalign.models.ensemble import HELD, Ensemble
from vlalign.models.feature_cache import FeatureCache
from vlalign.types import UserError


@pytest.fixture
def stages(tmp_path):
    """Three random models, of unlike widths."""
    ids = [
        open_clip_folder(tmp_path / str(dim), OPEN_CLIP | {"embed_dim": dim, "text_cfg": text})
        for dim in (16, 8, 16)
        for text in [OPEN_CLIP["text_cfg"] | {"vocab_size": 49408, "layers": 1}]
    ]
    return [load(id, device="cpu") for id in ids]


def test_a_cosine_is_the_mean_of_the_stages_cosines(stages, images, texts):
    joined = Ensemble(stages)
    rows = joined.encode_image(images), joined.encode_text(texts)
    assert all(side.shape == (4, 40) and side.dtype == torch.float32 for side in rows)
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            slow = 0.0
            for stage in stages:
                left, right = stage.encode_image([image])[0].double(), stage.encode_text([text])[0].double()
                slow += sum(a * b for a, b in zip(left.tolist(), right.tolist(), strict=True)) / len(stages)
            assert float(rows[0][i] @ rows[1][j]) == pytest.approx(slow, abs=1e-6)


def test_rows_are_unit(stages, images, texts):
    for rows in (Ensemble(stages).encode_image(images), Ensemble(stages).encode_text(texts)):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(4), rtol=0, atol=1e-6)


def test_one_stage_is_the_plain_encoder(stages, images, texts):
    plain, joined = stages[0], Ensemble(stages[:1])
    assert torch.equal(joined.encode_image(images), plain.encode_image(images))
    assert torch.equal(joined.encode_image(iter(images)), plain.encode_image(images))
    assert torch.equal(joined.encode_text(texts), plain.encode_text(texts))
    for own, wanted in zip(joined.score(texts, [images] * 4), plain.score(texts, [images] * 4), strict=True):
        assert torch.equal(own, wanted)


def test_equal_stages_keep_every_cosine(stages, images, texts):
    plain, joined = stages[0], Ensemble([stages[0]] * 4)
    wanted = plain.encode_image(images) @ plain.encode_text(texts).T
    torch.testing.assert_close(
        joined.encode_image(images) @ joined.encode_text(texts).T, wanted, rtol=0, atol=1e-6
    )


def test_scores_are_the_cosines_of_the_joined_rows(stages, images, texts):
    joined = Ensemble(stages)
    candidates = [images[:1], images, [], [texts[0], images[2]]]
    scores = joined.score(texts, candidates)
    assert [len(own) for own in scores] == [1, 4, 0, 2]
    cosines = joined.encode_text(texts) @ joined.encode_image(images).T
    torch.testing.assert_close(scores[1], cosines[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(scores[3][1], cosines[3, 2], rtol=0, atol=1e-6)


def test_an_iterator_is_read_once_and_few_of_its_images_are_held(stages):
    alive = held = 0

    class Picture:
        def __init__(self, shade):
            nonlocal alive, held
            self.image = Image.new("RGB", (8, 8), (shade, 0, 0))
            alive += 1
            held = max(held, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    for stage in stages:
        stage.opening = lambda picture: picture.image
    count = 3 * HELD + 5
    rows = Ensemble(stages).encode_image(Picture(shade) for shade in range(count))
    assert held <= 2 * HELD
    torch.testing.assert_close(rows, Ensemble(stages).encode_image([Picture(x) for x in range(count)]))


def test_windows_share_the_parts_of_a_cache(stages, tmp_path):
    count = 2 * HELD + 5
    pictures = [Image.new("RGB", (8, 8), (shade % 120, 0, shade // 120)) for shade in range(count)]
    joined, plain = Ensemble([*stages[:2], stages[0]]), Ensemble([*stages[:2], stages[0]])
    wanted = plain.encode_image(pictures)
    for place, stage in enumerate(stages[:2]):
        stage.caches = {"image": FeatureCache(tmp_path, str(place))}
    before = [dict(stage.caches) for stage in stages[:2]]
    for _ in range(2):
        torch.testing.assert_close(joined.encode_image(iter(pictures)), wanted)
        assert [stage.caches for stage in stages[:2]] == before
        for place in range(2):
            assert len([*(tmp_path / str(place)).iterdir()]) == 1
            assert len(FeatureCache(tmp_path, str(place))) == count


def test_what_was_computed_is_kept_when_an_image_ends_it(stages, tmp_path):
    stages[0].caches = {"image": FeatureCache(tmp_path, "0")}

    def broken():
        yield from (Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(HELD))
        raise UserError("the rest is gone")

    with pytest.raises(UserError, match="the rest is gone"):
        Ensemble(stages[:1]).encode_image(broken())
    assert len(FeatureCache(tmp_path, "0")) == HELD


def test_nothing_gives_no_rows_and_mistakes_are_sentences(stages):
    joined = Ensemble(stages)
    assert joined.encode_image([]).shape == joined.encode_image(iter([])).shape == (0, 40)
    assert joined.encode_text([]).shape == (0, 40) and joined.score([], []) == []
    with pytest.raises(UserError, match="an ensemble needs at least one model, got none"):
        Ensemble([])
    for one in ("a.png", Path("a.png")):
        with pytest.raises(UserError, match="give a list of images, even of one"):
            joined.encode_image(one)
    with pytest.raises(UserError, match="give a list of texts"):
        joined.encode_text("a cat")
