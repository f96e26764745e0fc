"""Which rows are learned from, when, and by whom: with any workers, after a kill, with another world."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.traps.two_processes import KILLED, epoch, whole, written
from tests.unit.data.pictures import encoded, noise
from tests.unit.data.test_shards import tar
from tests.unit.train.tiny import Letters, Pixels
from vlalign.data.chunks import Pairs
from vlalign.data.loader import loader
from vlalign.data.sampler import Order
from vlalign.data.samplers.random import Random
from vlalign.data.sources.webdataset import WebDataset
from vlalign.evals.report.log import read_lines
from vlalign.recipe.schemas import Augment
from vlalign.train.loop import train


def pairs(source, order, image=Pixels(), text=Letters(), **options) -> Pairs:
    return Pairs(source=source, order=order, image_process=image, text_process=text, **options)


def seen(folder: Path, *names: str) -> list[list[str]]:
    """The rows of each step, those of every file together."""
    found: dict[int, list[str]] = {}
    for name in names:
        for line in (folder / f"{name}.jsonl").read_text().splitlines():
            told = json.loads(line)
            found.setdefault(told["step"], []).extend(told["ids"])
    return [found[step] for step in sorted(found)]


def logged(out: Path) -> list[dict]:
    return [{**line, "time": None} for line in read_lines(out / "log.jsonl") if "loss" in line]


def readable() -> list[str]:
    return sorted(f"row{index}" for index in range(50) if index != 7)


@pytest.mark.slow
def test_07_partial_last_window(ran):
    """What is left of an epoch after the last full batch is dropped elsewhere, or divided by a full one's
    rows: here it is counted, its loss is the mean over the rows that it has, and the weights move."""
    one, lines = epoch(ran, "epoch"), logged(ran / "epoch")
    rows, states = seen(ran, "epoch_0", "epoch_1"), sorted((ran / "epoch").glob("step_*/model.safetensors"))
    assert sorted(sum(rows, [])) == readable() and len(lines) == len(states) == 4
    assert [line["samples_seen"] for line in lines] == [sum(map(len, rows[: step + 1])) for step in range(4)]
    source, model = one.data.train.build(), one.model.build()
    order = Order(sampler=Random(), rows=len(source), batch=16, seed=one.seed)
    batches = loader(pairs(source, order, *model.processors()), start_step=1, steps=4)
    for step, (batch,) in enumerate(batches, start=1):
        before, after = (load_file(states[at]) for at in (step - 1, step))
        model.load_state_dict(before, strict=False)  # locked weights, here the bias, are not kept
        with torch.no_grad():
            loss = one.task.loss(model(batch), batch, step, 4).total / len(rows[step])
        assert sorted(batch["ids"]) == sorted(rows[step])
        assert lines[step]["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert not torch.equal(before["image_head.weight"], after["image_head.weight"])
    assert 0 < len(rows[3]) < 16


@pytest.mark.parametrize("world", [1, 2])
def test_16_same_seed_same_order(place, world):
    """Batches that depend on which worker is quicker, or how many there are, cannot be repeated: here 0 and
    2 workers give every rank the same rows, pixels and captions, and the same again."""
    source = whole(place, "order").data.train.build()
    how, augment = {"chunk": 3, "steps": 6, "world": world}, Augment(scale=(0.4, 1), flip=True)
    for rank in range(world):
        ways = {
            name: list(loader(pairs(source, order, augment=augment), workers=workers, rank=rank, **how))
            for name, seed, workers in (("a", 3, 0), ("b", 3, 2), ("c", 3, 0), ("other", 4, 0))
            for order in [Order(sampler=Random(), rows=len(source), batch=16, seed=seed)]
        }
        told = {name: [chunk["ids"] for step in steps for chunk in step] for name, steps in ways.items()}
        assert told["a"] == told["b"] == told["c"] != told["other"]
        tensors = {
            name: [[chunk["query"], chunk["key"], chunk["key_fields"]] for step in steps for chunk in step]
            for name, steps in ways.items()
        }
        for name in ("b", "c"):
            torch.testing.assert_close(tensors[name], tensors["a"], rtol=0, atol=0)


@pytest.mark.slow
def test_17_killed_and_resumed(resumed):
    """A resumed run that draws other rows, or other random numbers, is another run: here one that lost a
    process in the middle of a step has the rows, losses and parameters of the uninterrupted, to the bit."""
    for rank in (0, 1):
        rows, cut, rest = (
            seen(resumed, f"{name}_{rank}{part}")
            for name, part in (("whole", ""), ("cut", ""), ("cut", "_resumed"))
        )
        assert len(rows) == 12 and cut == rows[:KILLED] and rest == rows[5:]
    assert logged(resumed / "cut") == logged(resumed / "whole")
    last = "step_00000012"
    found, wanted = (load_file(resumed / name / last / "model.safetensors") for name in ("cut", "whole"))
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    found, wanted = (
        torch.load(resumed / name / last / "optimizer.pt", weights_only=True)["state"]
        for name in ("cut", "whole")
    )
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.slow
def test_18_resumed_with_another_world(resumed):
    """Rows dealt out anew after the world has changed come twice, or never: here one process goes on, in the
    middle of an epoch, where two have stopped, and every row is learned from once."""
    before = seen(resumed, "whole_0", "whole_1")[:5]
    shutil.copytree(resumed / "cut_once", resumed / "alone")
    with written(resumed / "alone.jsonl"):
        train(whole(resumed, "alone"))
    steps = before + seen(resumed, "alone")
    assert len(steps) == 12
    for first in (0, 4, 8):
        assert sorted(sum(steps[first : first + 4], [])) == readable()
    assert [line["step"] for line in logged(resumed / "alone")] == list(range(1, 13))


def test_19_fewer_shards_than_readers(tmp_path):
    """A worker without a shard of its own waits for ever, or reads another's: here rows are shared, not
    shards, so that one shard serves two ranks of two workers, each row once."""
    members = [
        (f"{index:02d}.{form}", content)
        for index in range(21)
        for form, content in (("png", encoded(noise(seed=index))), ("txt", b"a picture"))
    ]
    source = WebDataset(shards=str(tar(tmp_path / "00000.tar", *members))).build()
    order = Order(sampler=Random(), rows=21, batch=8, seed=0)
    how = {"steps": order.steps, "world": 2, "workers": 2, "chunk": 2}
    rows = [
        row
        for rank in (0, 1)
        for step in loader(pairs(source, order), rank=rank, **how)
        for chunk in step
        for row in chunk["ids"]
    ]
    assert sorted(rows) == sorted(source.fields(index)["id"] for index in range(21))
