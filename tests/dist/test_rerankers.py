"""Rerankers under DDP and ZeRO on two gloo processes: equal to one process, loaded and gone on with."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vlalign
from tests.dist.launch import forked
from tests.rerank_traps.test_training import logged, recipe

LORA = "model.lora={rank: 2, alpha: 4.0}"
HOW = {"full": (), "lora": (LORA,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("rerankers")
    recipe(place)  # writes its model and its rows
    for name, overrides in HOW.items():
        forked(1, "tests.dist.rerank_run", str(place), f"one-{name}", *overrides)
    return place


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "what"),
    [("ddp", "full"), ("zero1", "lora"), ("zero2", "full"), ("zero3", "full"), ("zero3", "lora")],
)
def test_16_20_two_processes_end_where_one_does(folder, how, what):
    """The head is whole when its rows are read, queries are shared and none is lost or doubled."""
    out, one = folder / f"{how}-{what}", folder / f"one-{what}"
    forked(2, "tests.dist.rerank_run", str(folder), out.name, *HOW[what], by=how)
    for wanted, found in zip(logged(one), logged(out), strict=True):
        for name in ("loss", "norm", "lr", "samples_seen", "bad_rows"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-4), (wanted["step"], name)
    wanted, found = (load_file(each / "model" / "model.safetensors") for each in (one, out))
    assert wanted.keys() == found.keys()
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 1e-5
    texts = [["a red cat", "a dog in the house"]]
    [mine], [other] = (vlalign.load(each).score(["red"], texts) for each in (out, one))
    torch.testing.assert_close(mine, other, atol=1e-4, rtol=0)
