"""A run goes on with other processes and workers; real runs are killed, and end as if they had not been."""

import shutil
from pathlib import Path

import pytest
import stress_resume
from safetensors.torch import load_file

from tests.dist.launch import forked
from tests.dist.stress import stressed
from tests.unit.train.tiny import pictures
from vlalign.evals.report.log import read_lines

MODULE = "tests.dist.resumed"


@pytest.fixture
def folder(tmp_path) -> Path:
    pictures(tmp_path / "data")
    return tmp_path


def rows(folder: Path, out: str) -> dict[int, list[str]]:
    """What all processes learned from in each step."""
    found: dict[int, list[str]] = {}
    for path in folder.glob(f"{out}.[0-9]"):
        for line in path.read_text().splitlines():
            step, *ids = line.split()
            found.setdefault(int(step), []).extend(ids)
    return found


def same(folder: Path, *outs: str) -> bool:
    """Whether two runs have, but for rounding, the log of each other, and end with the same weights."""
    logs = [[line for line in read_lines(folder / out / "log.jsonl") if "loss" in line] for out in outs]
    for line, other in zip(*logs, strict=True):
        for name in ("loss", "scale", "lr"):
            assert abs(other[name] - line[name]) <= 1e-6 * max(1, abs(line[name])), (line["step"], name)
        assert other["samples_seen"] == line["samples_seen"] and other["bad_rows"] == line["bad_rows"]
    one, other = (load_file(folder / out / "model" / "model.safetensors") for out in outs)
    return max(float((one[name] - other[name]).abs().max()) for name in one) <= 1e-6


@pytest.mark.slow
def test_two_processes_then_one_then_three_end_where_one_does(folder):
    forked(1, MODULE, str(folder), "one", "0", "0")
    forked(2, MODULE, str(folder), "other", "3", "2", code=1)
    forked(1, MODULE, str(folder), "other", "6", "0", code=143)
    assert "step_00000006, 6 of 10 steps done" in forked(3, MODULE, str(folder), "other", "0", "1")
    seen, wanted = rows(folder, "other"), rows(folder, "one")
    assert {step: sorted(ids) for step, ids in seen.items()} == {s: sorted(ids) for s, ids in wanted.items()}
    for epoch in (range(1, 6), range(6, 11)):
        learned = sorted(row for step in epoch for row in seen[step])
        assert learned == sorted(f"row{index}" for index in range(50) if index != 7)
    assert same(folder, "one", "other")


@pytest.mark.slow
def test_shards_of_zero2_go_on_with_other_processes(folder):
    forked(2, MODULE, str(folder), "two", "3", "0", by="zero2", code=1)
    shutil.copytree(folder / "two", folder / "three")
    forked(2, MODULE, str(folder), "two", "0", "0", by="zero2")
    assert "step_00000003, 3 of 10 steps done" in forked(
        3, MODULE, str(folder), "three", "0", "1", by="zero2"
    )
    assert same(folder, "two", "three") and not list((folder / "three").glob(".step_*"))


@pytest.mark.slow
def test_what_shards_do_not_fit_is_refused_in_one_sentence(folder):
    forked(2, MODULE, str(folder), "two", "3", "0", by="zero3", code=1)
    wanted = "was written by DeepSpeed at stage 3 of ZeRO on 2 processes, and this run would go on"
    for processes, by, now in (
        (3, "zero3", "by DeepSpeed at stage 3 of ZeRO on 3 processes"),
        (2, "zero2", "by DeepSpeed at stage 2 of ZeRO"),
        (1, "one", "without DeepSpeed"),
    ):
        said = forked(processes, MODULE, str(folder), "two", "0", "0", by=by, code=1)
        assert said.count(f"{wanted} {now}; launch it as it was, or begin another one with out=FOLDER") == 1


@pytest.mark.slow
def test_a_run_of_which_one_process_was_killed_ends_like_the_one_that_nobody_killed(capsys):
    code = stressed(stress_resume, "--processes", "2", "--how", "zero2", "--times", "1")
    said = capsys.readouterr().out
    assert code == 0, said
    assert "1 of 1 runs equal" in said and "zero2" in said
