"""A whole run of a tiny recipe, on however many processes are started."""

import sys
from dataclasses import replace
from pathlib import Path

from tests.unit.train.test_loop import Sharpens
from tests.unit.train.tiny import TinyPair, recipe
from vlalign.recipe.schemas import Checkpoint
from vlalign.train.loop import train


def main(folder: str, out: str, kind: str) -> None:
    """Train into `folder/out`; `sharpens`: a task that wants nothing but a larger scale."""
    model, every = TinyPair(dropout=0.0), Checkpoint(every=4, keep=3)
    one = recipe(Path(folder), out=str(Path(folder) / out), model=model, checkpoint=every)
    if kind == "sharpens":
        steep = replace(one.optim, lr=0.05)
        one = replace(one, model=replace(model, scale=95.0), task=Sharpens(), optim=steep)
    train(one)


if __name__ == "__main__":
    main(*sys.argv[1:])
