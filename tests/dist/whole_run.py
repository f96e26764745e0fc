"""A whole run of a tiny recipe, on however many processes are started."""

import sys
from pathlib import Path

from tests.unit.train.tiny import TinyPair, recipe
from vlalign.recipe.schemas import Checkpoint
from vlalign.train.loop import train


def main(folder: str, out: str) -> None:
    """Train into `folder/out`."""
    every = Checkpoint(every=4, keep=3)
    train(recipe(Path(folder), out=str(Path(folder) / out), model=TinyPair(dropout=0.0), checkpoint=every))


if __name__ == "__main__":
    main(*sys.argv[1:])
