"""The comparison of directions on a tiny encoder and little pictures, and its tables."""

import json

import compare_directions as compare
import numpy as np
import pytest
import torch
from compare_directions import PAIR, RAVE, Cell, Cells, Size
from PIL import Image
from torch import nn

import vlalign
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.registry import SOURCES


@pytest.fixture
def model():
    """Random, but the same each time; its embeddings are the tower's features."""
    torch.manual_seed(0)
    made = vlalign.load("recipes/tiny/open_clip").model
    made.image_head = nn.Identity()
    return DualEncoderEmbedder(made)


@pytest.fixture
def own_pictures(monkeypatch, tmp_path):
    """Soft spots on white in place of clip art, the same whatever the split."""
    random = np.random.default_rng(0)
    for row in range(80):
        spots = Image.fromarray(random.integers(120, 256, (5, 5, 3), dtype=np.uint8))
        spots.resize((40, 40), Image.Resampling.BICUBIC).save(tmp_path / f"{row:02}.png")
    source = SOURCES.decode({"name": "folder", "path": str(tmp_path)})

    def drawn(spec, split, seed, parts):
        order = np.random.default_rng([seed, split == "train"]).permutation(80).tolist()
        ends = np.cumsum([0, *parts])
        pairs = zip(ends[:-1], ends[1:], strict=True)
        return [compare.Subset(source.build(), order[a:b], {}, {}, what="spots") for a, b in pairs]

    monkeypatch.setattr(compare, "drawn", drawn)


def test_both_and_looks_tell_dark_pictures_apart(model, own_pictures):
    found = compare.told(model, Cell("exposure of -2", 0), rows=20)
    assert found.keys() == {RAVE, PAIR, "luminance", "colours"}
    assert found["luminance"] == {"auc": 1.0, "accuracy": 1.0}
    assert (
        found[RAVE]["auc"] > 0.9 and found[RAVE] == compare.told(model, Cell("exposure of -2", 0), 20)[RAVE]
    )


def test_a_curve_is_led_to_the_light_and_its_way_is_told(model, own_pictures, monkeypatch):
    monkeypatch.setattr(compare, "ROWS", 20)
    size = Size(learnt=24, unseen=12, steps=30, batch=8, rate=0.05)
    found = compare.guided(model, Cell(RAVE, 1), size)
    assert found["psnr"] > found["psnr_before"] and abs(found["brightness"]) < abs(found["brightness_before"])
    assert [*found["scores"]] == [*range(0, 31, 2)] and found["scores"][30] > found["scores"][0]
    start, target = found["scores"][0], found["target"]
    there = [step for step, x in found["scores"].items() if x >= start + compare.WAY * (target - start)]
    assert found["steps"] == (there[0] if there else None)
    assert compare.guided(model, Cell(PAIR, 1), size)["scores"][0] == pytest.approx(start)


def test_rows_of_a_source_are_drawn_apart(monkeypatch, tmp_path):
    spec = {"name": "emoji", "style": "google"}
    first, second = compare.drawn(spec, "unseen", 3, [6, 5])
    ids = [each.fields(row)["id"] for each in (first, second) for row in range(len(each))]
    assert len(set(ids)) == 11
    (again,) = compare.drawn(spec, "unseen", 3, [6])
    assert [again.fields(row)["id"] for row in range(6)] == ids[:6]


def measured(path):
    done = Cells(path)
    for seed in range(3):
        apart = {"auc": 0.9 + seed / 100, "accuracy": 0.8}
        others = {name: {"auc": 0.7, "accuracy": 0.6} for name in (PAIR, "luminance", "colours")}
        done.add(Cell("style", seed), {RAVE: apart} | others)
        led = {"psnr_before": 10.0, "psnr": 12.0 + seed, "brightness": 0.1, "overshoot": 0.01, "past": 0.5}
        done.add(Cell(RAVE, seed), led | {"steps": 10 * seed or None})
    return done


def test_tables_say_what_was_measured(tmp_path):
    text = compare.markdown(measured(tmp_path / "cells.jsonl"))
    assert "| style | 91.0 [88.5, 93.5] | 70.0 [70.0, 70.0] |" in text and "| +21.0 [+18.5, +23.5] |" in text
    line = "| RAVE | 3 | 15.0 [-48.5, 78.5] | 2 of 3 | 3.00 [0.52, 5.48] | 0.100 [0.100, 0.100] | 50.0"
    assert line in text and "CLIP-LIT's pair |" not in text.split("guided by")[1]
    widths = {row.count("|") for row in text.split("\n\n")[0].splitlines()}
    assert len(widths) == 1


def test_a_torn_line_is_measured_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    count = len(measured(path).rows)
    path.write_text(path.read_text()[:-20])
    again = Cells(path)
    assert len(again.rows) == count - 1 and Cell(RAVE, 2) not in again.rows
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()][-1] == 2
