"""A whole run of a tiny reranker, on however many processes are started."""

import sys

from vlalign.recipe.decode import load_recipe
from vlalign.train.loop import train


def main(folder: str, out: str, *overrides: str) -> None:
    """Train into `folder/out` by the recipe of `folder`."""
    train(load_recipe(f"{folder}/r.yaml", [f"out={folder}/{out}", *overrides]))


if __name__ == "__main__":
    main(*sys.argv[1:])
