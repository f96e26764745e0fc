import json
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlalign.models.feature_cache import FeatureCache
from vlalign.models.features import image_features, text_features
from vlalign.models.pair import SIDES
from vlalign.registry import MODELS
from vlalign.threads import THREADS

EMBED = {"image": image_features, "text": text_features}


@pytest.fixture
def tower(bert_id, open_clip_id):
    text = {"name": "hf_text", "id": bert_id, "lock": True}
    image = {"name": "open_clip", "id": open_clip_id, "lock": True}
    return MODELS.decode({"name": "dual_encoder", "image": image, "text": text, "dim": 16}).build()


def refuse(*_):
    raise AssertionError("nothing was to be computed")


@pytest.mark.parametrize("side", SIDES)
def test_features_come_in_order_and_only_new_items_are_computed(tower, images, texts, tmp_path, side):
    one, embed = tower.tower(side), EMBED[side]
    cache, counts = FeatureCache(tmp_path, "key"), []
    items = [*(images if side == "image" else texts)]
    items.append(items[0])
    first = embed(one, items, cache, batch=2, progress=counts.append)
    assert first.shape == (5, one.width) and sum(counts) == 5 and len(cache) >= 4
    alone = torch.cat([embed(one, [item]) for item in items])
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5)
    one.forward = refuse
    assert torch.equal(embed(one, items, FeatureCache(tmp_path, "key")), first)


def text_tower(kind, bert_id, open_clip_id, hf_clip_id):
    """`legacy_clip` is one whose config says wrongly that 2 is the end: it reads the largest token."""
    if kind.endswith("clip") and kind != "open_clip":
        if kind == "legacy_clip":
            file = Path(hf_clip_id) / "config.json"
            config = json.loads(file.read_text())
            config["text_config"]["eos_token_id"] = 2
            file.write_text(json.dumps(config))
        return MODELS.decode({"name": "hf_clip", "id": hf_clip_id}).build().text.eval()
    id = {"hf_text": bert_id, "open_clip": open_clip_id}[kind]
    spec = {"name": "dual_encoder", "image": {"name": "open_clip", "id": open_clip_id}, "dim": 16}
    return MODELS.decode(spec | {"text": {"name": kind, "id": id}}).build().text.eval()


KINDS = pytest.mark.parametrize("kind", ["hf_text", "open_clip", "hf_clip", "legacy_clip"])


@KINDS
def test_unit_rows_are_those_of_padded_texts_within_a_millionth(kind, bert_id, open_clip_id, hf_clip_id):
    """Whatever stands beside a text in a batch."""
    tower = text_tower(kind, bert_id, open_clip_id, hf_clip_id)
    texts = [" ".join(["a red cat"] * (1 + i % 5)) for i in range(11)]
    long = " ".join(["the small house"] * 9)
    unit = torch.nn.functional.normalize
    trimmed, widths = [], []
    forward = tower.forward
    tower.forward = lambda inputs: widths.append(inputs["input_ids"].shape) or forward(inputs)
    for batch in (1, 3, 64):
        trimmed.append(unit(text_features(tower, texts, batch=batch), dim=1))
    narrow = {shape[1] for shape in widths}
    with torch.no_grad():
        padded = unit(tower(tower.process([*texts, long]))[:-1], dim=1)
    assert (
        max(narrow) < widths[-1][1] and len(narrow) > 2
    )  # it was trimmed, and texts of a length went together
    for rows in trimmed:
        torch.testing.assert_close(rows, padded, rtol=0, atol=1e-6)


@KINDS
def test_one_long_text_does_not_make_the_forwards_of_others_long(kind, bert_id, open_clip_id, hf_clip_id):
    tower = text_tower(kind, bert_id, open_clip_id, hf_clip_id)
    colours, things = ("red", "blue", "green", "small"), ("cat", "dog")
    texts = ["the house and the tree and the sky with a car", *(f"{a} {b}" for a in colours for b in things)]
    widths = []
    forward = tower.forward
    tower.forward = lambda inputs: widths.append(inputs["input_ids"].shape[1]) or forward(inputs)
    text_features(tower, texts, batch=2)
    assert widths == [4, 4, 4, 4, 13]


@pytest.mark.parametrize("masked", [False, True])
def test_siglip_texts_are_never_cut(siglip_id, texts, masked):
    """It reads the last place, padding or not."""
    process = MODELS.decode({"name": "hf_clip", "id": siglip_id}).build().text.process
    process.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    process = replace(process, masked=masked)
    assert process.lengths(process(texts)).tolist() == [16] * 4


def test_texts_of_like_length_share_a_forward_and_each_is_read_once(tower):
    words = ["a", "red", "cat", "and", "the", "blue", "dog", "with", "two", "car"]
    texts = [" ".join(words[: 1 + 3 * i % 10]) for i in range(40)]
    seen = []
    forward = tower.text.forward
    tower.text.forward = lambda inputs: seen.append(inputs["attention_mask"]) or forward(inputs)
    text_features(tower.text, texts, batch=2)
    assert sum(map(len, seen)) == 10
    assert sum(int((mask == 0).sum()) for mask in seen) == 5  # two neighbours differ by one token


def test_what_cannot_be_opened_has_no_row_and_pictures_are_opened_in_threads(tower, images):
    threads = set()

    def opening(place):
        threads.add(threading.current_thread())
        return None if place == 1 else images[place]

    rows = image_features(tower.image, range(4), batch=1, opening=opening)
    torch.testing.assert_close(rows, image_features(tower.image, [images[i] for i in (0, 2, 3)]))
    assert threading.main_thread() not in threads


def test_each_thread_holds_one_picture_at_a_time(tower):
    alive, peak, lock = set(), [0], threading.Lock()

    def opening(number):
        picture = Image.new("RGB", (40, 40), (number, 0, 0))
        with lock:
            alive.add(number)
            weakref.finalize(picture, alive.discard, number)
            peak[0] = max(peak[0], len(alive))
        return picture

    image_features(tower.image, range(64), batch=16, opening=opening)
    assert 1 <= peak[0] <= THREADS and not alive


def test_pictures_whose_inputs_are_of_unlike_shapes_share_no_forward(tower, images):
    whole, shapes = tower.image.process, []
    tower.image.process = lambda items: {
        "pixels": whole(items)["pixels"][..., : 16 * (1 + items[0].width % 2)]
    }
    tower.image.forward = lambda inputs: (
        shapes.append(tuple(inputs["pixels"].shape))
        or torch.stack([inputs["pixels"].flatten(1).mean(1)] * tower.image.width, 1)
    )
    rows = image_features(tower.image, images)
    assert sorted(shapes) == [(1, 3, 32, 32), (3, 3, 32, 16)]
    torch.testing.assert_close(rows, torch.cat([image_features(tower.image, [image]) for image in images]))


@pytest.mark.parametrize("side", SIDES)
def test_progress_tells_every_item_also_those_without_a_row(tower, images, texts, side):
    told = []
    if side == "image":
        opening = [*images, None].__getitem__
        image_features(tower.image, [0, 4, 1, 4, 0, 3], batch=2, progress=told.append, opening=opening)
    else:
        text_features(tower.text, [*texts, *texts[:2]], batch=2, progress=told.append)
    assert sum(told) == 6


def test_a_pass_that_ends_early_leaves_no_thread(tower, images):
    def opening(place):
        if place == 2:
            raise ValueError("no picture")
        return images[0]

    before = threading.active_count()
    with pytest.raises(ValueError, match="no picture"):
        image_features(tower.image, range(50), batch=1, opening=opening)
    assert threading.active_count() <= before  # one of an earlier test may have ended since


def test_features_leave_the_training_mode_as_it_was(tower, images):
    free = tower.text.net.encoder.layer[0]
    tower.train()
    before = [module.training for module in tower.modules()]
    image_features(tower.image, images)
    assert [module.training for module in tower.modules()] == before and not free.training
    assert image_features(tower.image, []).shape == (0, 16) and text_features(tower.text, []).shape == (0, 24)
