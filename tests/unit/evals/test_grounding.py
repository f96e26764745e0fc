import base64
import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.evals.fakes import ColourModel, Rows, Spec, unit
from vlalign.evals.evaluators.grounding import Grounding
from vlalign.evals.report.page import write
from vlalign.evals.rows import write_rows
from vlalign.types import DataError, Limits, UserError

RED, GREEN, WHITE = (255, 0, 0), (0, 255, 0), (255, 255, 255)


class Quarters(Rows):
    """A row's `image` is a colour at its `box` of 8 pixels a side, on white."""

    def __getitem__(self, index):
        row = super().__getitem__(index)
        picture = Image.new("RGB", (8, 8), WHITE)
        picture.paste(self.rows[index]["image"], tuple(map(int, row["at"].split())))
        return row | {"image": picture}


class CellModel(ColourModel):
    """Patches are the mean colours of 4 x 4 cells."""

    def encode_patches(self, images):
        return torch.stack([unit(self.cells(image).tolist()) for image in images])

    def cells(self, image):
        return torch.tensor(np.asarray(image).reshape(4, 2, 4, 2, 3).mean((1, 3)).reshape(16, 3)) + 1

    def seen(self, images):
        return torch.stack(
            [torch.tensor(np.asarray(image) / 255).permute(2, 0, 1).float() for image in images]
        )


ROWS = [
    {"image": RED, "at": "0 0 4 4", "box": "0 0 4 4", "captions": ("red",)},  # right
    {"image": GREEN, "at": "4 2 8 6", "box": "4 0 8 4", "captions": ("green",)},  # half right, best first
    {"image": RED, "at": "4 4 8 8", "box": "0 0 3 4", "captions": ("red",)},  # wrong; half cells in the box
    {"image": None, "at": "0 0 4 4", "box": "0 0 4 4", "captions": ("red",)},
]


def measured(rows=ROWS, model=None, **fields):
    told = {"data": Spec(Quarters(rows)), "dataset": "fake", "share": 0.25} | fields
    return Grounding(**told)(model or CellModel(), Limits())[0]


def naive():
    """By hand: the four cells with the best cosines, first of equal ones, and how much the box covers."""
    inside, hits, chance = [], [], []
    model = CellModel()
    for index, row in enumerate(ROWS[:3]):
        picture = Quarters(ROWS)[index]["image"]
        text = model.encode_text([row["captions"][0]])[0]
        cosines = [float(cell @ text) for cell in model.encode_patches([picture])[0]]
        best = sorted(range(16), key=lambda cell, cosines=cosines: (-round(cosines[cell], 6), cell))[:4]
        left, top, right, bottom = map(int, row["box"].split())
        covered = []
        for cell in range(16):
            y, x = 2 * (cell // 4), 2 * (cell % 4)
            wide = max(0, min(right, x + 2) - max(left, x))
            covered.append(wide * max(0, min(bottom, y + 2) - max(top, y)) / 4)
        inside += [covered[cell] for cell in best]
        hits.append(covered[best[0]] >= 0.5)
        chance += covered
    return sum(inside) / 12, sum(hits) / 3, sum(chance) / 48, sum(each >= 0.5 for each in chance) / 48


def test_equals_a_count_by_hand():
    row = measured()
    inside, hits, any_inside, any_hit = naive()
    assert row.metrics == pytest.approx({"inside": inside, "hit_rate": hits})
    assert row.chance == pytest.approx({"inside": any_inside, "hit_rate": any_hit})
    assert inside == 0.5 and hits == pytest.approx(2 / 3)
    assert row.task == "grounding" and row.exhibits["rows"]["skipped"] == {"truncated": 1}


def test_the_report_shows_the_chosen_patches_bright(tmp_path):
    row = measured(gallery=1)
    (shown,) = row.exhibits["grounding"]
    assert shown["text"] == "green"
    picture = Image.open(io.BytesIO(base64.b64decode(shown["picture"].partition(",")[2]))).convert("L")
    light = np.asarray(picture.resize((4, 4), Image.Resampling.BOX), dtype=float)
    chosen = np.zeros((4, 4), dtype=bool)
    chosen[1:3, 2:] = True
    assert light[chosen].min() > light[~chosen].max()
    write_rows(tmp_path, [row])
    page = write(tmp_path).read_text(encoding="utf-8")
    assert "Patches chosen for: green" in page and 'href="#grounding"' in page
    write_rows(tmp_path, [])
    assert "grounding" not in write(tmp_path).read_text(encoding="utf-8")


def test_without_boxes_there_are_pictures_alone():
    row = measured(box=None)
    assert row.metrics == row.chance == {} and len(row.exhibits["grounding"]) == 3


def test_what_cannot_be_measured_is_told():
    with pytest.raises(DataError, match="a box must be 'left top right bottom' in pixels, got '1 2 3'"):
        measured([ROWS[0] | {"box": "1 2 3"}])
    with pytest.raises(UserError, match="several joined models have none"):
        measured(model=ColourModel())
    model = CellModel()
    model.encode_patches = lambda images: CellModel.encode_patches(model, images)[:, :12]
    with pytest.raises(UserError, match="needs a square of patches, got 12"):
        measured(model=model)
    for fields in ({"share": 0.0}, {"share": math.inf}, {"gallery": -1}, {"every": -1}):
        with pytest.raises(ValueError, match="must be"):
            measured(**fields)
