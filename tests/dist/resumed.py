"""A tiny run that stops after a step, and writes down which rows each process learned from."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from tests.unit.train.tiny import TinyPair, recipe
from vlalign.recipe.schemas import Checkpoint
from vlalign.train.loop import train
from vlalign.train.run import Run


def main(folder: str, out: str, until: str, workers: str) -> None:
    """Train into `folder/out`; a line of `folder/out.RANK` is a step and its rows."""
    after = Run.after

    def then(run: Run, step: int, numbers: dict, rows: int, chunks: list) -> None:
        after(run, step, numbers, rows, chunks)
        with Path(folder, f"{out}.{run.runtime.rank}").open("a", encoding="utf-8") as file:
            print(step, *(row for chunk in chunks for row in chunk["ids"]), file=file)
        if step == int(until):
            os.kill(os.getpid(), signal.SIGTERM)

    Run.after = then
    data = {"data.batch": 12, "data.workers": int(workers)}
    one = recipe(Path(folder), out=str(Path(folder, out)), model=TinyPair(dropout=0.0), steps=10, **data)
    train(replace(one, checkpoint=Checkpoint(every=4, keep=3)))


if __name__ == "__main__":
    main(*sys.argv[1:])
