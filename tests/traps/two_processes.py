"""What two processes do for these tests; `launch` starts them, and ends both when one of them dies."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from tests.dist.launch import Forks, ports
from tests.traps.cases import STEPS, Results, Sharpens, slopes
from tests.unit.train.tiny import TinyPair, recipe
from vlalign.recipe.schemas import Checkpoint, TrainRecipe
from vlalign.train.loop import train
from vlalign.train.runtime import Runtime

KILLED = 7  # the step in which one process is killed


def launch(what: str, folder: Path) -> list[int]:
    """Two gloo processes do `what`, a function of this module; returns how they ended."""
    own = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    own |= {"VLALIGN_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    environments = [own | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    said = [str(folder / f"{what}_{rank}.log") for rank in "01"]
    forks = Forks("tests.traps.two_processes", [what, str(folder), *ports(5)], environments, said)
    forks.wait()
    return [*forks.codes]


def whole(folder: Path, out: str) -> TrainRecipe:
    """Three epochs of 49 rows that can be read, in steps of 16, 16, 9 and 9; dropout in both towers."""
    place = str(folder / out)
    return recipe(folder, out=place, model=TinyPair(), checkpoint=Checkpoint(every=5, keep=9))


def unclipped(folder: Path) -> TrainRecipe:
    """What a runtime reads of a recipe, when nothing but its steps is used."""
    one = whole(folder, "steps")
    return replace(one, optim=replace(one.optim, clip=0.0))


def epoch(folder: Path, out: str) -> TrainRecipe:
    """The first epoch, without dropout; the weights after each step are kept."""
    one = whole(folder, out)
    every = Checkpoint(every=1, keep=9)
    return replace(one, model=TinyPair(dropout=0.0), steps=4, checkpoint=every)


def sharp(folder: Path, out: str) -> TrainRecipe:
    """A run that reaches the largest scale before step 4, and from there wants a smaller one at once."""
    one, model = whole(folder, out), TinyPair(dropout=0.0, scale=95.0)
    steep = replace(one.optim, lr=0.05, betas=(0.0, 0.98))  # no momentum that goes on rising
    every = Checkpoint(every=4, keep=9)
    return replace(one, model=model, task=Sharpens(until=4), optim=steep, steps=8, checkpoint=every)


@contextmanager
def written(file: Path, killed: int | None = None) -> Iterator[None]:
    """Inside, the rows of each step are appended to a file; at step `killed` the process dies."""
    move = Runtime.move

    def then(runtime, step, loss, rows, ids, *rest):
        with file.open("a") as lines:
            lines.write(json.dumps({"step": step, "ids": list(ids)}) + "\n")
        if step == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return move(runtime, step, loss, rows, ids, *rest)

    Runtime.move = then
    try:
        yield
    finally:
        Runtime.move = move


def steps(folder: Path, ports: Iterator[str], rank: int) -> None:
    """Every case; whole runs under DDP; and one under DeepSpeed, which can start but once in a process."""
    meet(ports)
    runtime = Runtime(unclipped(folder))
    results: Results = slopes(rank, 2)
    for each in STEPS:
        results |= each(runtime, folder)
    runtime.close()
    torch.save(results, folder / f"steps_{rank}.pt")
    for one in (whole(folder, "whole"), epoch(folder, "epoch"), sharp(folder, "sharp")):
        meet(ports)
        with written(folder / f"{Path(one.out).name}_{rank}.jsonl"):
            train(one)
    meet(ports, "2")
    train(sharp(folder, "sharp_zero2"))


def killed(folder: Path, ports: Iterator[str], rank: int) -> None:
    """A run whose second process dies."""
    meet(ports)
    with written(folder / f"cut_{rank}.jsonl", KILLED if rank else None):
        train(whole(folder, "cut"))


def resumed(folder: Path, ports: Iterator[str], rank: int) -> None:
    """That run to its end, and the rest of the one under DeepSpeed."""
    meet(ports)
    with written(folder / f"cut_{rank}_resumed.jsonl"):
        train(whole(folder, "cut"))
    meet(ports, "2")
    train(sharp(folder, "sharp_zero2"))


def meet(ports: Iterator[str], zero: str = "") -> None:
    """Where and how the next group of processes is to be made."""
    cpu, deepspeed = ("false", "true") if zero else ("true", "false")
    how = {"ACCELERATE_USE_CPU": cpu, "ACCELERATE_USE_DEEPSPEED": deepspeed}
    os.environ |= how | {"MASTER_PORT": next(ports), "ACCELERATE_DEEPSPEED_ZERO_STAGE": zero or "0"}


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]), iter(sys.argv[3:]), int(os.environ["RANK"]))
