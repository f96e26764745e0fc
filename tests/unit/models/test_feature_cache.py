import os
import resource
import threading
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vlalign.models import feature_cache
from vlalign.models.feature_cache import FeatureCache, item_hash, tower_key
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


@pytest.mark.parametrize("package", feature_cache.PACKAGES)
def test_the_key_changes_with_the_packages_that_decode_and_compute(tower, monkeypatch, package):
    def changed(name):
        if name != package:
            return metadata.version(name)
        if absent:
            raise metadata.PackageNotFoundError(name)
        return "0.0.0"

    key = tower_key(tower.text)
    monkeypatch.setattr(feature_cache, "version", changed)
    absent = False
    other = tower_key(tower.text)
    absent = True
    assert len({key, other, tower_key(tower.text)}) == 3


@pytest.fixture
def listings(monkeypatch):
    """Each listing of a folder, and a clock to turn."""
    found, clock, listdir = [], [100.0], os.listdir
    monkeypatch.setattr(feature_cache.os, "listdir", lambda folder: found.append(folder) or listdir(folder))
    monkeypatch.setattr(feature_cache.time, "monotonic", lambda: clock[0])
    return found, clock


def test_a_folder_that_has_not_changed_is_listed_once_more_and_then_never(tmp_path, listings):
    FeatureCache(tmp_path, "key").put(*rows(2))
    found, clock = listings
    found.clear()
    cache = FeatureCache(tmp_path, "key")
    for _ in range(100):
        cache.get([item_hash("new")])
    assert len(found) == 1
    clock[0] += 10
    for _ in range(100):
        cache.get([item_hash("new")])
    assert len(found) == 2


def test_a_part_that_leaves_the_folders_time_as_it_was_is_not_lost(tmp_path, listings):
    mine = FeatureCache(tmp_path, "key")
    mine.put(*rows(2))
    before, (hashes, values) = mine.folder.stat().st_mtime_ns, rows(2, start=2)
    FeatureCache(tmp_path, "key").put(hashes, values)
    os.utime(mine.folder, ns=(before, before))
    assert mine.get(hashes) == [None, None]
    listings[1][0] += 0.5
    assert torch.equal(torch.stack(mine.get(hashes)), values)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_cannot_be_listed_is_told_once_and_rows_stay_in_memory(tmp_path, monkeypatch, when):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    (tmp_path / "key").mkdir()
    cache = None if when == "before" else FeatureCache(tmp_path, "key")
    monkeypatch.setattr(feature_cache.os, "listdir", refuse)
    with pytest.warns(UserWarning, match="key: features cannot be looked up here: .*denied") as told:
        cache = cache or FeatureCache(tmp_path, "key")
        for some in (first := rows(2), second := rows(2, start=2)):
            cache.put(*some)
            cache.get([item_hash("new")])
    assert len(told) == 1 and len(list(Path(tmp_path, "key").glob("*.part"))) == 2
    for hashes, values in (first, second):
        assert torch.equal(torch.stack(cache.get(hashes)), values)


def test_a_full_disk_is_told_once_and_rows_stay_in_memory(tmp_path):
    cache = FeatureCache(tmp_path, "key")
    kept, more, last = rows(2), rows(300, start=2), rows(300, start=302)
    cache.put(*kept)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.warns(UserWarning, match="key: features cannot be kept here: ") as told:
            cache.put(*more)
            cache.put(*last)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(told) == 1 and len(list(cache.folder.iterdir())) == 1
    for hashes, values in (kept, more, last):
        assert torch.equal(torch.stack(cache.get(hashes)), values)


def test_rows_are_found_among_many_parts_of_uneven_size(tmp_path):
    sizes = np.random.default_rng(0).integers(1, 40, 60).tolist()
    cache, start, hashes, values = FeatureCache(tmp_path, "key"), 0, [], []
    for size in sizes:
        new = rows(size, start)
        cache.put(*new)
        start += size
        hashes += new[0]
        values.append(new[1])
    order = np.random.default_rng(1).permutation(len(hashes))
    wanted = [hashes[i] for i in order]
    for found in (cache, FeatureCache(tmp_path, "key")):
        assert torch.equal(torch.stack(found.get(wanted)), torch.cat(values)[order])
        assert len(found) == len(hashes) and len(found._runs) < 12


def test_hashes_that_share_their_first_half_are_not_confused():
    one, other = "ab" * 8 + "00" * 8, "ab" * 8 + "01" * 8
    cache = FeatureCache()
    cache.put([one], torch.ones(1, 3))
    assert cache.get([other]) == [None]
    cache.put([other], torch.zeros(1, 3))
    found = cache.get([one, other])
    assert found[0] is None or torch.equal(found[0], torch.ones(3))
    assert found[1] is None or torch.equal(found[1], torch.zeros(3))
