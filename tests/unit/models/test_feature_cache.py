import threading

import pytest
import torch
from PIL import Image

from vlalign.models.feature_cache import FeatureCache, features, item_hash, tower_key
from vlalign.registry import MODELS


@pytest.fixture
def tower(bert_id, open_clip_id):
    text = {"name": "hf_text", "id": bert_id, "lock": True}
    image = {"name": "open_clip", "id": open_clip_id, "lock": True}
    return MODELS.decode({"name": "dual_encoder", "image": image, "text": text, "dim": 16}).build()


def rows(count: int, start: int = 0) -> tuple[list[str], torch.Tensor]:
    return [item_hash(f"text {i}") for i in range(start, start + count)], torch.randn(count, 6)


def test_what_was_put_is_found_again_by_another_process(tmp_path):
    hashes, values = rows(5)
    FeatureCache(tmp_path, "key").put(hashes, values)
    found = FeatureCache(tmp_path, "key").get([hashes[3], item_hash("new"), hashes[0]])
    assert torch.equal(found[0], values[3]) and found[1] is None and torch.equal(found[2], values[0])
    assert FeatureCache(tmp_path, "other").get(hashes) == [None] * 5


def test_a_cache_that_is_open_sees_what_others_add(tmp_path):
    mine, other = FeatureCache(tmp_path, "key"), FeatureCache(tmp_path, "key")
    hashes, values = rows(2)
    other.put(hashes, values)
    assert torch.equal(torch.stack(mine.get(hashes)), values)


@pytest.mark.parametrize("damage", ["cut", "flip_features", "flip_header", "empty"])
def test_a_damaged_part_is_ignored_by_name_and_the_others_are_used(tmp_path, damage):
    cache = FeatureCache(tmp_path, "key")
    first, second = rows(4), rows(4, start=4)
    cache.put(*first)
    (part,) = cache.folder.glob("*.part")
    cache.put(*second)
    data = bytearray(part.read_bytes())
    if damage == "cut":
        data = data[:-3]
    elif damage == "empty":
        data = bytearray()
    else:
        data[-3 if damage == "flip_features" else 20] ^= 1
    part.write_bytes(data)
    with pytest.warns(UserWarning, match=f"{part.name}.*damaged"):
        again = FeatureCache(tmp_path, "key")
    assert again.get(first[0]) == [None] * 4
    assert torch.equal(torch.stack(again.get(second[0])), second[1])


def test_threads_that_write_at_once_lose_nothing(tmp_path):
    written = [rows(3, start=3 * i) for i in range(8)]
    threads = [threading.Thread(target=lambda r=r: FeatureCache(tmp_path, "key").put(*r)) for r in written]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache = FeatureCache(tmp_path, "key")
    assert len(cache) == 24
    assert all(torch.equal(torch.stack(cache.get(hashes)), values) for hashes, values in written)


def test_hashes_tell_size_pixels_and_text_apart():
    flat = [Image.new("RGB", size, colour) for size in [(4, 2), (2, 4)] for colour in ["red", "blue"]]
    assert len({item_hash(item) for item in [*flat, "red", "blue"]}) == 6
    assert item_hash(flat[0]) == item_hash(flat[0].copy()) == item_hash(flat[0].convert("RGBA"))


def test_the_key_changes_with_weights_preprocessing_and_pooling_and_with_nothing_else(tower, bert_id):
    key = tower_key(tower.text)
    assert key == tower_key(tower.text.train()) and key != tower_key(tower.image)

    def other(**fields):
        image = {"name": "timm", "id": "test_vit"}
        text = {"name": "hf_text", "id": bert_id, **fields}
        return tower_key(MODELS.decode({"name": "dual_encoder", "image": image, "text": text}).build().text)

    assert other() == key
    assert len({key, other(pool="cls"), other(max_length=7)}) == 3
    next(tower.text.parameters()).data.view(-1)[0] += 1
    assert tower_key(tower.text) != key


def test_features_come_in_order_and_only_new_items_are_computed(tower, texts, tmp_path):
    cache, counts = FeatureCache(tmp_path, "key"), []
    items = [*texts, texts[0]]
    first = features(tower.text, iter(items), cache, batch=2, progress=counts.append)
    assert first.shape == (5, tower.text.width) and sum(counts) == 5
    alone = torch.cat([features(tower.text, [text]) for text in items])
    torch.testing.assert_close(first, alone, rtol=0, atol=1e-5)
    tower.text.forward = None  # any further call would fail
    assert torch.equal(features(tower.text, items, FeatureCache(tmp_path, "key")), first)


def test_features_leave_the_training_mode_as_it_was(tower, images):
    tower.image.adapters = None
    free = tower.text.net.encoder.layer[0]
    tower.train()
    before = [module.training for module in tower.modules()]
    features(tower.image, images)
    assert [module.training for module in tower.modules()] == before and not free.training
    assert features(tower.image, []).shape == (0, 16)
