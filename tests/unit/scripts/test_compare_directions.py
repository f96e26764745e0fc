"""The comparison of directions on a tiny encoder and little pictures, and its tables."""

import json

import compare_directions as compare
import direction_cells as cells
import numpy as np
import pytest
import torch
from compare_directions import Cells
from direction_cells import (
    ATTRIBUTES,
    BRIGHTNESS,
    CHOOSING,
    DARK,
    ENHANCER,
    GUIDES,
    ORIGINALS,
    PAIR,
    PROMPTS,
    RAVE,
    TUNING,
    Cell,
    Size,
    Study,
)
from PIL import Image

import vlalign
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.weights import save
from vlalign.types import BadRow


class Spots:
    """Soft spots on white, two drawings a concept, of which one cannot be read."""

    licences, skipped = (), {}

    def __init__(self, style):
        self.style, self.read = style, 0

    def __len__(self):
        return 200

    def captions(self, index):
        return (f"spot {index}",)

    def fields(self, index):
        return {"id": f"{self.style}/{index}", "concept": f"{index // 2}"}

    def __getitem__(self, index):
        self.read += 1
        if index == 7:
            raise BadRow("truncated", "cut")
        random = np.random.default_rng([index, self.style is not None])
        spots = Image.fromarray(random.integers(120, 256, (5, 5, 3), dtype=np.uint8))
        image = spots.resize((230, 230), Image.Resampling.BICUBIC)
        return {**self.fields(index), "image": image, "captions": self.captions(index)}


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    found = {style: cells.Small(Spots(style)) for style in (None, "google", "twitter")}
    monkeypatch.setattr(cells, "pool", found.get)
    monkeypatch.setattr(cells, "ROWS", 24)
    return found


@pytest.fixture
def study(monkeypatch):
    """Random weights, but the same each time."""
    torch.manual_seed(0)
    size = Size(steps=20, batch=8, unseen=12, every=2, rates=(0.05,))
    monkeypatch.setattr(cells, "STEPS", {PAIR: 200, PROMPTS: 5})
    return Study(DualEncoderEmbedder(vlalign.load("recipes/tiny/open_clip").model.eval()), size)


def test_no_concept_is_in_two_parts_nor_in_the_choice_of_rates():
    def concepts(part):
        return {part.fields(row)["concept"] for row in range(len(part))}

    dealt = {
        (what, seed): [concepts(part) for part in cells.parts(what, seed)]
        for what in (DARK, "style")
        for seed in (0, 1, CHOOSING)
    }
    for parts in dealt.values():
        assert sum(map(len, parts)) == len(set.union(*parts)) and all(parts)
    for what in (DARK, "style"):
        chosen = set.union(*dealt[what, CHOOSING])
        assert all(chosen.isdisjoint(set.union(*dealt[what, seed])) for seed in (0, 1))
        assert dealt[what, 0] != dealt[what, 1]
    ids = [part.fields(0)["id"].partition("/")[0] for part in cells.parts("style", 0)]
    assert ids == ["google", "twitter"] * 2 and {len(part) for part in cells.parts(DARK, 0)} == {24}


def test_a_picture_is_read_once_and_kept_small(pictures):
    (part, *_) = cells.parts(DARK, 0)
    first, again = part[0]["image"], part[0]["image"]
    assert first.size == (224, 224) and first is again and pictures[None].source.read == 1


def test_directions_and_looks_tell_dark_pictures_apart(study):
    found = {how: study.told(Cell("exposure of -1", how, 5e-3, 0.0, 0)) for how in compare.HOWS}
    assert found["luminance"]["auc"] == 1.0 and found["luminance"]["accuracy"] == 1.0
    assert found[RAVE]["auc"] > 0.9 and found[PAIR]["auc"] > 0.9 and found[RAVE]["past"] < 0.5
    assert found[RAVE]["seconds"] < found[PAIR]["seconds"] and 0 <= found[PROMPTS]["auc"] <= 1


def test_where_no_picture_is_degraded_nothing_is_told_apart(study, monkeypatch):
    monkeypatch.setattr(cells, "worse", lambda source, what, seed: source)
    for how in (RAVE, "luminance"):
        aucs = [study.told(Cell("blur of 4", how, 0.0, 0.0, seed))["auc"] for seed in range(4)]
        assert abs(np.mean(aucs) - 0.5) < 0.2


def test_guides_lead_a_curve_to_the_light_and_their_way_is_told(study):
    found = {how: study.guided(Cell(ENHANCER, how, 5e-3, 0.05, 1), 5e-3) for how in GUIDES if how != PROMPTS}
    for each in found.values():
        assert each["psnr"] > each["psnr_before"] and each["error"] < each["error_before"]
        assert each["psnr_before"] == found[RAVE]["psnr_before"]
        for by in (RAVE, PAIR, BRIGHTNESS):
            assert each["steps"][by] in range(2, 21, 2) and each["way"][by] > 0
    assert found[ORIGINALS]["psnr"] >= max(found[how]["psnr"] for how in (RAVE, PAIR, BRIGHTNESS)) - 0.5
    assert found[RAVE] == study.guided(Cell(ENHANCER, RAVE, 5e-3, 0.05, 1), 5e-3)


def test_a_guide_that_leads_away_never_arrives(study, monkeypatch):
    fitted = study.fitted

    def turned(how, what, rate, seed):
        found, seconds = fitted(RAVE if how == PROMPTS else how, what, rate, seed)
        return (found._replace(vector=-found.vector) if how == PROMPTS else found), seconds

    monkeypatch.setattr(study, "fitted", turned)
    found = study.guided(Cell(ENHANCER, PROMPTS, 5e-3, 0.05, 1), 5e-3)
    assert found["steps"] == dict.fromkeys((RAVE, PAIR, BRIGHTNESS)) and found["psnr"] < found["psnr_before"]


class Told:
    """Numbers in place of a study, and the cells that were asked for."""

    def __init__(self):
        self.asked = []

    def told(self, cell):
        self.asked.append(cell)
        best = {PAIR: 2e-3, PROMPTS: 1e-2}.get(cell.how, 0.0)
        auc = 0.9 - 0.2 * (cell.fit != best) - 0.1 * (cell.how != RAVE) + cell.seed % 10 / 100
        return {"auc": auc, "accuracy": 0.8, "past": 0.25, "seconds": 1.5}

    def guided(self, cell, yardstick):
        self.asked.append(cell)
        assert yardstick == 2e-3
        late = None if cell.seed == 1 else 10 + cell.seed
        return {
            "steps": {RAVE: late, PAIR: 6, BRIGHTNESS: None},
            "psnr_before": 10.0,
            "psnr": 12.0 + cell.seed % 10 - (cell.how == PAIR) - (cell.rate == 0.03) - (cell.fit == 2e-3),
            **dict.fromkeys(("error_before", "error", "brightness"), 0.1),
            **dict.fromkeys(("past", "past_originals", "overshoot", "over_originals"), 0.5),
        }


def measured(path, whats=(*ATTRIBUTES, ENHANCER), made="one"):
    done, study = Cells(path, Cell, made), Told()

    def work(groups, yardstick):
        for own in groups:
            curves = own[0].what == ENHANCER
            assert len({(cell.what, cell.seed) for cell in own}) == 1 and (len(own) == 1 or not curves)
            yield [(cell, study.guided(cell, yardstick) if curves else study.told(cell)) for cell in own]

    compare.measure(done, whats, 3, work)
    return done, study.asked


def test_rates_are_chosen_on_a_seed_of_their_own_and_what_is_measured_stays(tmp_path):
    done, asked = measured(tmp_path / "cells.jsonl")
    assert len(asked) == len({*asked}) == len(done.rows)
    first = [cell for cell in asked if cell.seed == CHOOSING and cell.what != ENHANCER]
    assert asked[: len(first)] == first and {cell.what for cell in first} == {*TUNING}
    assert {cell.fit for cell in asked if cell.how == PAIR and cell.seed == 2 and cell.what == DARK} == {2e-3}
    curves = {cell.how: cell[2:4] for cell in asked if cell.what == ENHANCER and cell.seed == 0}
    assert curves == {**dict.fromkeys(GUIDES, (0.0, 0.01)), **dict.fromkeys((PAIR, PROMPTS), (5e-4, 0.01))}
    again, asked = measured(tmp_path / "cells.jsonl")
    assert asked == [] and again.rows.keys() == done.rows.keys()
    assert len(measured(tmp_path / "cells.jsonl", made="another")[1]) == len(done.rows)


def test_a_torn_line_is_measured_again(tmp_path):
    path = tmp_path / "cells.jsonl"
    count = len(measured(path)[0].rows)
    path.write_text(path.read_text()[:-20])
    assert len(Cells(path, Cell, "one").rows) == count - 1
    assert len(measured(path)[1]) == 1 and len(path.read_text().splitlines()) == count


def test_tables_say_what_was_measured(tmp_path):
    text = compare.markdown(measured(tmp_path / "cells.jsonl")[0])
    assert "| style | 91.0 [88.5, 93.5]; 80.0 | 81.0 [78.5, 83.5]; 80.0 |" in text
    assert "pair 1000 steps at 0.002, prompts 100 steps at 0.01" in text
    steps = "11.0 [-1.7, 23.7] (2 of 3) | 6.0 [6.0, 6.0] (3 of 3) | never (0 of 3)"
    assert f"| {RAVE} | 0.01 | 1.5 | {steps} | 3.0 [0.5, 5.5] |" in text
    assert "past RAVE's target lie 0.500 [0.500, 0.500] of the originals" in text
    for table in text.split("\n\n"):
        assert len({row.count("|") for row in table.splitlines() if row.startswith("|")}) <= 1


def test_a_look_that_solves_an_attribute_is_named(tmp_path):
    done, _ = measured(tmp_path / "cells.jsonl", whats=["style"])
    for seed in range(3):
        done.add(Cell("style", "colours", 0.0, 0.0, seed), {"auc": 0.97, "accuracy": 0.8})
    line = next(row for row in compare.markdown(done).splitlines() if row.startswith("| style"))
    assert line.endswith("| colours |") and "| -6.0 [-8.5, -3.5] (p 0.0091) |" in line
    assert compare.differences({"a": ({0: 1.0, 1: 2.0}, {0: 0.0})}) == {}


def test_another_encoder_makes_other_cells(tmp_path):
    for seed in (0, 1):
        torch.manual_seed(seed)
        save(vlalign.load("recipes/tiny/open_clip").model, tmp_path / str(seed))
    first, again, other = (compare.digest(str(tmp_path / name)) for name in ("0", "0", "1"))
    assert first == again != other


def test_lines_of_a_file_are_json(tmp_path):
    done, _ = measured(tmp_path / "cells.jsonl", whats=["style"])
    rows = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert [Cell(*(row[name] for name in Cell._fields)) for row in rows] == [*done.rows]
