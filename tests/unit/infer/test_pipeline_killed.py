"""A pipeline of real verbs that is killed inside two of its stages ends as one that nobody killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.unit.infer.noting import NOTED, Noting
from tests.unit.train.tiny import pictures
from vlalign.evals.report.log import read_lines
from vlalign.recipe.pipelining import OWN
from vlalign.registry import name_of

ROOT = Path(__file__).parents[3]
STEPS, EVERY = 30, 5
PATIENCE = 240  # seconds; a stage imports much, and a machine may be busy
FILES = ["mined/candidates.jsonl", "judged/candidates.jsonl", "judged/judged.json"]


def recipe(folder: Path) -> Path:
    """Train a dual encoder, mine with it, judge what it finds, and learn that."""
    rows = str(folder.parent / "data" / "rows.jsonl")
    judge = {
        "verb": "judge",
        "out": "x",
        "judges": [name_of(Noting)],
        "data": {"name": "candidates", "path": "x"},
    }
    folder.mkdir()
    (folder / "judge.yaml").write_text(json.dumps(judge))
    training = {"log": {"every": 1, "trackers": []}, "checkpoint": {"every": EVERY, "keep": 2}}
    stages = {
        "retriever": {
            "recipe": "recipes/tiny/clip.yaml",
            "overrides": {
                "data.train": {"name": "jsonl", "path": rows, "id": "id"},
                "data.batch": 8,
                "steps": STEPS,
                **training,
            },
        },
        "mined": {
            "recipe": "recipes/mine/mine.yaml",
            "overrides": {
                "model": "{retriever}",
                "data.path": "recipes/tiny/candidates.jsonl",
                "corpus": None,
                "relative_margin": None,
            },
        },
        "judged": {
            "recipe": str(folder / "judge.yaml"),
            "overrides": {
                "data.path": "{mined}/candidates.jsonl",
                "choose": {"margin": 0.01, "treat": "drop", "k": 4},
            },
        },
        "learned": {
            "recipe": "recipes/tiny/hard_negatives.yaml",
            "overrides": {
                "init": "{retriever}/model",
                "data.train.path": "{judged}/candidates.jsonl",
                **training,
            },
        },
    }
    path = folder / "pipeline.yaml"
    path.write_text(json.dumps({"verb": "pipeline", "out": str(folder / "out"), "stages": stages}))
    return path


def start(path: Path) -> "subprocess.Popen[bytes]":
    """The command line, with a cache and a file for what was asked of this pipeline alone."""
    own = {
        "VLALIGN_CACHE": str(path.parent / "cache"),
        NOTED: str(path.parent / "noted"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "vlalign", "pipeline", str(path)]
    with (path.parent / "said").open("ab") as said:
        return subprocess.Popen(
            command, cwd=ROOT, env=os.environ | own, stdout=said, stderr=subprocess.STDOUT
        )


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def kill(path: Path, when: Callable[[], bool], everything: bool) -> int:
    """Begin a pipeline and, when it is time, kill its running stage with all that it started, and before that
    the pipeline itself if `everything` is meant; how the pipeline ended.
    """
    own = start(path)
    try:
        end = time.monotonic() + PATIENCE
        while not when():
            assert own.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        [stage] = psutil.Process(own.pid).children()
        if everything:
            own.kill()
        os.killpg(stage.pid, signal.SIGKILL)  # which it leads, so that Ctrl-C reaches it once
        code = own.wait(PATIENCE)
        psutil.wait_procs([stage], timeout=10)
    finally:
        own.terminate()  # where it is not killed yet, which ends its stage too
    return code


def states(out: Path) -> dict[str, str]:
    return {each["name"]: each["state"] for each in json.loads((out / "pipeline.json").read_text())["stages"]}


@pytest.fixture
def unharmed(tmp_path):
    """The pipeline that nobody kills, and its process: it runs meanwhile, on the machine's other core."""
    pictures(tmp_path / "data")
    own = start(path := recipe(tmp_path / "unharmed"))
    yield path, own
    own.terminate()
    own.wait(PATIENCE)


@pytest.mark.slow
def test_killed_in_training_and_in_judging_it_ends_as_one_that_nobody_killed(tmp_path, unharmed):
    (other, beside), path = unharmed, recipe(tmp_path / "killed")
    whole, out, noted = other.parent / "out", path.parent / "out", path.parent / "noted"
    reached = out / "retriever" / f"step_{EVERY:08d}"
    assert kill(path, reached.exists, everything=True) == -signal.SIGKILL
    assert reached.exists() and not (out / "retriever" / "model").exists()

    assert kill(path, lambda: len(lines(noted)) >= 60, everything=False) == 1
    before, rows = lines(noted), lines(out / "judged" / "part-0.jsonl")
    assert 0 < len(rows) < 40 and not (out / "judged" / "candidates.jsonl").exists()
    assert states(out) == {"retriever": "done", "mined": "done", "judged": "failed", "learned": "left out"}

    assert (start(path).wait(PATIENCE), beside.wait(PATIENCE)) == (0, 0), (path.parent / "said").read_text()
    assert states(out) == {
        "retriever": "unchanged",
        "mined": "unchanged",
        "judged": "done",
        "learned": "done",
    }
    made = [*FILES, *(path.relative_to(whole) for path in whole.glob("*/model/*.safetensors"))]
    assert len(made) == len(FILES) + 2
    for name in made:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name

    said = (out / OWN / "retriever.log").read_text()
    [resumed] = [line for line in said.splitlines() if line.startswith("resumed from")]
    assert int(resumed.split("step_")[1].split(",")[0]) >= EVERY
    logs = [
        [line | {"time": 0} for line in read_lines(each / "retriever" / "log.jsonl") if "loss" in line]
        for each in (out, whole)
    ]
    assert [line["step"] for line in logs[0]] == [*range(1, STEPS + 1)] and logs[0] == logs[1]

    asked, once = lines(noted), lines(other.parent / "noted")
    assert len(once) == len(set(once)) and sorted(set(asked)) == sorted(once)
    assert len(asked) - len(set(asked)) <= 1  # the question that was not answered when it died
    assert not set(asked[len(before) :]) & set(before[:-1])
    assert lines(out / "judged" / "part-0.jsonl")[: len(rows)] == rows
    assert not [each.name for each in out.iterdir() if each.suffix == ".1"]  # nothing was set aside
