"""What tests of several files share: one process and two, each started once for all of them."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.traps import cases
from tests.traps.two_processes import launch, unclipped
from tests.unit.models import conftest as models
from tests.unit.train.tiny import pictures
from vlalign.train.runtime import Runtime

hf_clip_id, siglip_id, images, texts = models.hf_clip_id, models.siglip_id, models.images, models.texts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    """Data, configs of models, and whatever the processes write."""
    folder = tmp_path_factory.mktemp("traps")
    pictures(folder / "data")
    cases.prepare(folder)
    return folder


@pytest.fixture(scope="session")
def one(place: Path) -> cases.Results:
    """Every case on one process, all of its rows in one forward."""
    runtime = Runtime(unclipped(place))
    try:
        return cases.run(runtime, place)
    finally:
        runtime.close()


@pytest.fixture(scope="session")
def ran(place: Path) -> Path:
    """The folder, after two processes took every step and made every run."""
    assert launch("steps", place) == [0, 0], (place / "steps_0.log").read_text()[-3000:]
    return place


@pytest.fixture(scope="session")
def two(ran: Path) -> list[cases.Results]:
    """Every case on two processes, by rank."""
    return [torch.load(ran / f"steps_{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="session")
def resumed(ran: Path) -> Path:
    """The folder, after one of two was killed and both went on; `cut_once` is as the kill left it."""
    assert launch("killed", ran)[1] == -9
    shutil.copytree(ran / "cut", ran / "cut_once")
    shutil.copytree(ran / "sharp_zero2", ran / "sharp_zero2_whole")
    for name in ("model", "step_00000008"):
        shutil.rmtree(ran / "sharp_zero2" / name)
    assert launch("resumed", ran) == [0, 0], (ran / "resumed_0.log").read_text()[-3000:]
    return ran
