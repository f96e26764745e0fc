"""Runs whose folder fills up, is damaged, or that are refused before anything is built."""

import errno
import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from tests.unit.train.tiny import TinyPair, recipe
from vlalign.supervision.targets.identity import Identity
from vlalign.train import checkpoint, finish, state
from vlalign.train.folder import missing, writing
from vlalign.train.loop import train
from vlalign.types import RecipeError, UserError

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
FULL_TENSORS = SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refuse(error):
    def act(*_, **__):
        raise error

    return act


@pytest.mark.parametrize(
    ("module", "name", "error", "last"),
    [
        (checkpoint, "_seal", FULL, "none"),
        (state, "_plain", FULL_TENSORS, "none"),
        (finish, "write_rows", FULL, "step_00000012"),
        (finish, "save_model", FULL_TENSORS, "step_00000012"),
        (finish, "write_report", FULL, "step_00000012"),
    ],
)
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    tmp_path, monkeypatch, module, name, error, last
):
    one = recipe(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, refuse(error))
        with pytest.raises(UserError, match=f"^out: .*No space left on device.* checkpoint is {last}"):
            train(one)
    assert not missing(train(one))


def test_a_damaged_output_is_made_again(tmp_path):
    out = train(recipe(tmp_path))
    names = ("metrics.json", "exhibits.json", "rows.json")
    whole = {name: (out / name).read_bytes() for name in names}
    for name, damage in zip(names, (b"", b"[{", b"\xff"), strict=True):
        (out / name).write_bytes(damage)
    assert missing(out) == list(names)
    train(recipe(tmp_path))
    assert {name: (out / name).read_bytes() for name in names} == whole


def test_a_field_that_no_row_has_is_told_before_the_model_is_built(tmp_path, monkeypatch):
    monkeypatch.setattr(TinyPair, "build", refuse(AssertionError("built")))
    one = recipe(tmp_path)
    task = replace(one.task, targets=Identity(same=("row", "concept")))
    with pytest.raises(RecipeError, match="task: .* 'concept', .* id; set data.train.concept"):
        train(replace(one, task=task))


def test_a_batch_of_more_rows_than_there_are_is_told(tmp_path, capfd):
    train(recipe(tmp_path, steps=1, **{"data.batch": 64, "data.chunk": None}))
    assert "data.batch: 64 rows, the data has 50: every step sees all 50" in capfd.readouterr().err


def test_a_feature_cache_that_cannot_be_made_costs_only_the_saving(tmp_path, cache):
    Path(cache).write_text("a file")
    with pytest.warns(UserWarning, match="features cannot be kept here"):
        train(recipe(tmp_path, model=TinyPair(lock=True), steps=1))
    assert not missing(tmp_path / "out")


def test_what_torch_cannot_write_is_told_by_its_reason(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        file = (tmp_path / "optimizer.pt").open("wb")
        with (
            pytest.raises(UserError, match="written: File too large; the last whole"),
            writing(tmp_path),
            file,
        ):
            torch.save([torch.zeros(2**14) for _ in range(4)], file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(RuntimeError, match="something else"), writing(tmp_path):
        raise RuntimeError("something else")
