"""The comparison of combiners: recipes that load, cells that are not run again, and the table by hand."""

import json
from pathlib import Path

import compare_combiners as compare
import pytest
from compare_combiners import (
    CHOOSING,
    MODES,
    RATES,
    SETS,
    Cell,
    best,
    difference,
    digest,
    recipes,
    run,
    table,
)
from kept import Kept

from vlalign.evals.metrics.paired import paired
from vlalign.evals.rows import write_rows
from vlalign.specs import EvalRow

WAYS = ("", "picture_", "text_", "sum_")


def queries(share, count=20):
    """So many hits of so many queries."""
    hits = [1.0] * round(share * count) + [0.0] * (count - round(share * count))
    found = {f"{way}R@{k}": hits for way in WAYS for k in (1, 2, 3)}
    return {**found, "chance": {f"R@{k}": k / 9 for k in (1, 2, 3)}}


def share(cell):
    best = {"combined": 0.8, "sum": 0.6, "image": 0.3, "text": 0.2}[cell.mode]
    return best - 0.1 * (cell.rate != 3e-4) + 0.05 * (cell.seed == 1)


@pytest.fixture
def done(tmp_path):
    cells = Kept(tmp_path / "cells.jsonl", Cell, "these")
    wanted = [Cell(mode, rate, CHOOSING) for mode in MODES for rate in RATES]
    wanted += [Cell(mode, 3e-4, seed) for mode in MODES for seed in range(2)]
    for cell in wanted:
        cells.add(cell, {name: queries(share(cell)) for name in SETS})
    return cells


def test_what_is_measured_is_read_again_and_a_torn_line_is_dropped(done):
    with done.path.open("a") as file:
        file.write('{"mode": "sum"')
    again = Kept(done.path, Cell, "these")
    assert again.rows == done.rows and len(again.rows) == 4 * len(RATES) + 8
    assert not Kept(done.path, Cell, "others").rows
    assert [json.loads(line)["mode"] for line in done.path.read_text().splitlines()][:2] == ["combined"] * 2


def test_each_has_its_best_rate_and_is_told_beside_the_combiner(done):
    assert {best(done, mode) for mode in MODES} == {3e-4}
    lines = table(done, range(2))
    assert len(lines) == 2 + 2 * (4 + 3 + 1)
    assert lines[2] == "| google | combiner of both | 0.0003 | 82.5 | 82.5 | 82.5 |  |"
    assert lines[3].startswith("| google | learned sum of both | 0.0003 | 62.5 | 62.5 | 62.5 | +20.0 [")
    assert lines[9].startswith("| google | chance |  | 11.1 | 22.2 | 33.3 |")


def test_a_difference_has_an_interval_over_seeds_and_one_over_queries():
    ours, theirs = [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    over = paired([2 / 3, 1.0], [1 / 3, 1 / 3]), paired([1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 1])
    told = [f"[{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]" for each in over]
    assert difference(ours, theirs) == f"+50.0 {told[0]} {told[1]}"


def test_another_setting_of_either_recipe_or_another_recipe_is_another_digest(monkeypatch, tmp_path):
    settings = ([], []), (["steps=5"], []), ([], ["steps=5"]), (["data.train.distractors=2"], [])
    found = [digest(*each) for each in settings]
    assert len({*found}) == len(found) and digest([], []) == found[0]
    (tmp_path / "combiner.yaml").write_text(f"extends: {Path(compare.COMBINER).resolve()}\nsteps: 6\n")
    monkeypatch.setattr(compare, "COMBINER", str(tmp_path / "combiner.yaml"))
    assert digest([], []) not in found


def test_a_cell_trains_its_encoder_then_the_head_on_the_split_of_its_seed(monkeypatch, tmp_path):
    asked = []

    def train(recipe):
        asked.append(recipe)
        exhibits = {"queries": {name: each for name, each in queries(0.5).items() if name != "chance"}}
        rows = [
            EvalRow(
                dataset=f"emoji/{name}",
                task="conditional",
                metrics={},
                chance={"R@1": 0.1},
                exhibits=exhibits,
            )
            for name in SETS
        ]
        write_rows(tmp_path / "run", rows)
        return tmp_path / "run"

    monkeypatch.setattr(compare, "train", train)
    found = run(recipes(Cell("sum", 1e-3, 7), tmp_path, ["steps=5"], ["steps=2"]))
    encoder, head = asked
    assert encoder.steps == 2 and encoder.seed == 7 and head.model.encoder == encoder.out
    assert head.steps == 5 and head.model.mode == "sum" and head.optim.lr == 1e-3 and head.seed == 7
    [evaluator] = head.evals
    sides = [head.data.train, *evaluator.tasks.values()]
    assert {each.seed for each in sides} == {7} and [each.split for each in sides] == [
        "train", "unseen", "unseen",
    ]  # fmt: skip
    assert found["unseen_bases"]["R@1"] == [1.0] * 10 + [0.0] * 10
    assert found["unseen_bases"]["chance"] == {"R@1": 0.1}
