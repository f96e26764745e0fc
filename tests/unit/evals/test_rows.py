import json

import pytest

from vlalign.evals.rows import read_rows, write_rows
from vlalign.specs import EvalRow


def row(name, value=1 / 3):
    return EvalRow(
        dataset=name, task="t", metrics={"m": value}, chance={"m": 0.1}, exhibits={"shown": [name]}
    )


def test_rows_come_back_whole_and_unrounded(tmp_path):
    rows = [row("a/b"), row("c", 0.1 + 0.2)]
    write_rows(tmp_path / "out", rows)
    assert read_rows(tmp_path / "out") == rows
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written[0] == {"dataset": "a/b", "task": "t", "metrics": {"m": 1 / 3}, "chance": {"m": 0.1}}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["exhibits.json", "metrics.json"]


def test_nothing_was_measured(tmp_path):
    assert read_rows(tmp_path) == []


def test_exhibits_of_another_evaluation_are_refused(tmp_path):
    write_rows(tmp_path, [row("a"), row("b")])
    (tmp_path / "exhibits.json").write_text("[]")
    with pytest.raises(ValueError, match="has 0 rows, metrics.json has 2"):
        read_rows(tmp_path)


def test_a_number_that_is_none_leaves_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_rows(tmp_path / "out", [row("a", float("nan"))])
    assert not list((tmp_path / "out").iterdir())
