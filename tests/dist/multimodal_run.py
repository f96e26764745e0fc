"""A whole run of a tiny multimodal reranker, one process of which may be killed after a step."""

import os
import signal
import sys

from vlalign.recipe.decode import load_recipe
from vlalign.train.loop import train
from vlalign.train.run import Run


def main(folder: str, out: str, until: str) -> None:
    """Train into `folder/out` by the recipe of `folder`; the last process dies after step `until`."""
    after = Run.after

    def then(run: Run, step: int, *more: object) -> None:
        after(run, step, *more)
        if step == int(until) and run.runtime.rank == run.runtime.world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    Run.after = then
    train(load_recipe(f"{folder}/r.yaml", [f"out={folder}/{out}"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
