"""Whole runs of AdamW under DDP and ZeRO on two gloo processes: equal to one process."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.dist.launch import STRATEGIES, forked
from tests.unit.train.tiny import pictures
from vlalign.evals.report.log import read_lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    pictures(place / "data")
    forked(1, "tests.dist.whole_run", str(place), "one", "plain")
    return place


def steps(out: Path) -> list[dict]:
    return [{**line, "time": None} for line in read_lines(out / "log.jsonl") if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("how", STRATEGIES)
def test_two_processes_end_where_one_does(folder, how):
    forked(2, "tests.dist.whole_run", str(folder), how, "plain", by=how)
    for wanted, found in zip(steps(folder / "one"), steps(folder / how), strict=True):
        for name in ("loss", "norm", "scale", "lr", "samples_seen", "bad_rows"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-5), (wanted["step"], name)
    wanted, found = (load_file(folder / name / "model" / "model.safetensors") for name in ("one", how))
    assert wanted.keys() == found.keys()
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 2e-6


@pytest.mark.slow
def test_the_scale_is_clamped_under_zero3_too(folder):
    forked(2, "tests.dist.whole_run", str(folder), "sharp", "sharpens", by="zero3")
    lines = steps(folder / "sharp")
    scales = [line["scale"] for line in lines]
    assert scales[0] < 99.9 and scales[-1] == pytest.approx(100.0, abs=1e-4) and max(scales) < 100.001
    assert min(line["loss"] for line in lines) > -100.001  # it is -scale: so no forward met a larger one
