"""Cells of a study: what is kept, and what is not taken."""

import json
from typing import NamedTuple

from kept import Kept


class Cell(NamedTuple):
    arm: str
    seed: int


def test_cells_are_kept_a_torn_line_is_dropped_and_others_than_made_are_not_taken(tmp_path):
    path = tmp_path / "new" / "cells.jsonl"
    done = Kept(path, Cell, "this")
    assert not done.rows
    for seed in (0, 1):
        done.add(Cell("plain", seed), {"right": seed / 2})
    Kept(path, Cell, "that").add(Cell("plain", 0), {"right": 9})
    with path.open("a") as file:
        file.write('{"arm": "pl')
    again = Kept(path, Cell, "this")
    assert again.rows == done.rows and [*again.rows] == [Cell("plain", 0), Cell("plain", 1)]
    assert again.rows[Cell("plain", 1)]["right"] == 0.5
    assert [json.loads(line)["made"] for line in path.read_text().splitlines()] == ["this", "this", "that"]
