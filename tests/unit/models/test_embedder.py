from pathlib import Path

import pytest
import torch

from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.feature_cache import FeatureCache
from vlalign.registry import MODELS
from vlalign.types import Item, UserError


@pytest.fixture
def model(open_clip_id):
    return MODELS.decode({"name": "open_clip", "id": open_clip_id, "image": {"lock": True}}).build()


def test_batches_and_order_do_not_matter(model, images, texts):
    one, many = DualEncoderEmbedder(model, batch=1), DualEncoderEmbedder(model, batch=3)
    torch.testing.assert_close(one.encode_text(texts), many.encode_text(texts), rtol=0, atol=1e-6)
    backwards = many.encode_image(images[::-1]).flip(0)
    torch.testing.assert_close(one.encode_image(images), backwards, rtol=0, atol=1e-6)
    assert one.encode_text([]).shape == (0, 16) and one.encode_image([]).shape == (0, 16)
    assert one.encode_text(texts).dtype == torch.float32


def test_scores_are_cosines_of_texts_and_images(model, images, texts):
    embedder = DualEncoderEmbedder(model)
    scores = embedder.score([texts[0], images[1]], [[images[0], images[2]], [texts[2]]])
    image, text = embedder.encode_image(images), embedder.encode_text(texts)
    torch.testing.assert_close(scores[0], torch.stack([image[0] @ text[0], image[2] @ text[0]]))
    torch.testing.assert_close(scores[1], (image[1] @ text[2])[None])
    with pytest.raises(ValueError, match="candidates for each of 1 queries, got 2"):
        embedder.score([texts[0]], [[], []])


def test_scores_of_texts_with_pictures_are_of_what_both_give(model, images, texts):
    embedder, unit = DualEncoderEmbedder(model), torch.nn.functional.normalize
    image, text = embedder.encode_image(images), embedder.encode_text(texts)
    items = [Item(text=texts[1], images=(images[2],)), Item(images=(images[0], images[1])), images[3]]
    rows = unit(torch.stack([image[2] + text[1], image[0] + image[1], image[3]]))
    query = Item(text=texts[0], images=(images[0], images[1]))
    asked = unit(unit(image[0] + image[1], dim=0) + text[0], dim=0)
    torch.testing.assert_close(embedder.score([query], [items])[0], rows @ asked)
    fused = unit(0.25 * image[2] + 0.75 * text[1], dim=0)
    torch.testing.assert_close(embedder.embed(items[:1], fusion=0.25)[0], fused)
    assert embedder.score([""], [["", "  "]])[0].shape == (2,) and embedder.embed([]).shape == (0, 16)


def test_it_measures_in_eval_mode_and_restores_training(model, texts):
    model.train()
    before = [module.training for module in model.modules()]
    rows = DualEncoderEmbedder(model).encode_text(texts)
    assert [module.training for module in model.modules()] == before and any(before)
    assert not rows.requires_grad
    model.eval()
    DualEncoderEmbedder(model).encode_text(texts)
    assert not model.training


@pytest.mark.parametrize("folder", ["kept", None])
def test_a_side_with_a_cache_runs_once_and_one_without_each_time(model, images, texts, tmp_path, folder):
    cache = FeatureCache(tmp_path / folder if folder else None, "image")
    embedder = DualEncoderEmbedder(model, caches={"image": cache})
    rows = embedder.encode_image(images)
    embedder.encode_text(texts)
    assert len(cache) == 4
    assert torch.equal(DualEncoderEmbedder(model).encode_image(images), rows)
    model.image.forward = model.text.forward = refuse
    assert torch.equal(embedder.encode_image(images), rows)
    with pytest.raises(AssertionError, match="it ran"):
        embedder.encode_text(texts)


def refuse(*_):
    raise AssertionError("it ran")


def test_what_is_no_list_of_texts_or_images_is_told(model, images, texts):
    embedder = DualEncoderEmbedder(model)
    with pytest.raises(UserError, match="give a list of texts, even of one; got a bare str: 'hello'"):
        embedder.encode_text("hello")
    for bare in ("image.png", Path("image.png"), images[0]):
        with pytest.raises(UserError, match="give a list of images"):
            embedder.encode_image(bare)
    with pytest.raises(UserError, match="give a list of queries"):
        embedder.score(texts[:1], ["hello"])
    with pytest.raises(UserError, match="a text must be a str, got NoneType"):
        embedder.encode_text(["hello", None])
    with pytest.raises(UserError, match="lone surrogates"):
        embedder.encode_text(["\ud800"])
    with pytest.raises(UserError, match="batch must be >= 1, got 0"):
        DualEncoderEmbedder(model, batch=0)


@pytest.mark.parametrize("part", ["head", "tower"])
def test_embeddings_that_are_no_numbers_are_told_by_their_side(model, images, texts, part):
    embedder = DualEncoderEmbedder(model)
    if part == "head":
        model.text_head = torch.nn.Linear(16, 16)
        model.text_head.weight.data.fill_(float("nan"))
    else:
        model.text.net.ln_final.bias.data.fill_(float("inf"))
    with pytest.raises(UserError, match=f"4 of 4 text embeddings are not finite, the text {part} gives NaN"):
        embedder.encode_text(texts)
    assert embedder.encode_image(images).isfinite().all()


def test_a_model_of_bfloat16_embeds_too(hf_clip_id, images, texts):
    model = MODELS.decode({"name": "hf_clip", "id": hf_clip_id}).build()
    wanted = DualEncoderEmbedder(model)
    image, text = wanted.encode_image(images), wanted.encode_text(texts)
    half = DualEncoderEmbedder(model.bfloat16())
    assert (half.encode_image(images) - image).abs().max() < 0.05
    assert (half.encode_text(texts) - text).abs().max() < 0.05
