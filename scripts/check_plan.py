"""What `vlalign plan` says of memory and speed, against training steps on this machine's CPU.

Memory is the growth of a fresh process's resident set over three steps, the model's building included. A
forecast counts what tensors hold, so that process gives back to the system what it frees
(MALLOC_MMAP_THRESHOLD_, see mallopt(3)). glibc left to itself keeps freed blocks of up to 32 MiB for later,
and more stays resident: that is the column "glibc's own way", and seconds are measured in that process. Exit
code 1 when an error of memory is above 15 %. Nothing is promised of seconds.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measure import peak
from PIL import Image
from rich.console import Console
from rich.table import Table
from tables import THREADS

from vlalign.data.collate import collate, stack_features
from vlalign.data.sampler import parts, share
from vlalign.recipe.decode import load_recipe
from vlalign.train.model import build
from vlalign.train.plan.forecast import forecast
from vlalign.train.runtime import Runtime
from vlalign.train.seeds import seed_step
from vlalign.train.step import cached, separable

STEPS, BOUND = 3, 0.15
MEMORY = ("predicted MiB", "measured MiB", "error", "glibc's own way MiB")
COLUMNS = (*MEMORY, "predicted s", "measured s", "error")
GIVING_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
WARM = ("recipes/tiny/clip.yaml", ["data.batch=4", "data.chunk=null"])
TIMM = "model.image={name: timm, id: vit_small_patch16_224, pretrained: false, lock: true}"
CASES: dict[str, tuple[str, list[str]]] = {
    "info_nce, ViT-S-32, 16 rows": (
        "recipes/align/clip.yaml",
        ["model.id=ViT-S-32", "data.batch=16", "data.chunk=null"],
    ),
    "info_nce, ViT-B-32, 32 rows in chunks of 8": (
        "recipes/align/clip.yaml",
        ["data.batch=32", "data.chunk=8"],
    ),
    "LoRA, ViT-B-32, 16 rows in chunks of 8": (
        "recipes/align/lora.yaml",
        ["model.pretrained=null", "data.batch=16", "data.chunk=8"],
    ),
    "LiT, image features kept, 64 rows in chunks of 16": (
        "recipes/align/lit.yaml",
        [TIMM, "model.text={name: open_clip, id: ViT-S-32}", "data.batch=64", "data.chunk=16"]
        + ["feature_cache=true"],
    ),
    "LiT, image tower run, 24 rows": (
        "recipes/align/lit.yaml",
        [TIMM, "model.text={name: open_clip, id: ViT-S-32}", "data.batch=24", "data.chunk=null"]
        + ["feature_cache=false"],
    ),
    "sigmoid, ViT-S-16, checkpointing, 12 rows": (
        "recipes/align/siglip.yaml",
        ["model.id=ViT-S-16", "gradient_checkpointing=true", "data.batch=12", "data.chunk=null"],
    ),
    "heads alone, 16,384 rows": (
        "recipes/tiny/quickstart.yaml",
        ["model.dim=512", "data.batch=16384"],
    ),
}


def training(path: str, overrides: list[str], note: str) -> Callable[[], object]:
    """Some steps of a recipe on rows that are made up; the seconds of the last one go to the file `note`."""
    recipe = load_recipe(path, overrides, verb="train")

    def run() -> None:
        with Runtime(recipe) as runtime:
            seed_step(recipe.seed, 0, 0)
            model = build(recipe).to(runtime.device)
            runtime.prepare(model, recipe.optim.build(model), recipe.schedule.build(recipe.steps))
            count = parts(recipe.data.batch, recipe.data.chunk, 1)
            chunks = [rows(recipe, model, *share(0, recipe.data.batch, each, count)) for each in range(count)]
            backward = cached if runtime.chunked and recipe.task.coupled else separable
            for step in range(1, STEPS + 1):
                start = time.perf_counter()
                loss = backward(
                    runtime, runtime.model, chunks, recipe.task,
                    step=step, total=recipe.steps, divisor=recipe.data.batch,
                )  # fmt: skip
                runtime.move(step, loss, recipe.data.batch, [])
                Path(note).write_text(str(time.perf_counter() - start))

    return run


def rows(recipe: Any, model: Any, start: int, stop: int) -> Any:
    """A chunk as the loader makes it, of grey pictures and long captions, or of a locked tower's features."""
    picture, caption = Image.new("RGB", (256, 256), "grey"), "a picture of many things " * 100
    item: dict[str, Any] = {"image": picture, "texts": [caption]}
    process = dict(zip(("image", "text"), model.processors(), strict=True))
    for side in model.locked if recipe.feature_cache else ():
        if side == "text" or recipe.data.augment.identity:
            seen, process[side] = torch.ones(model.tower(side).width), stack_features
            item |= {"image": seen} if side == "image" else {"texts": [seen]}
    made = [item | {"caption": caption, "id": str(index)} for index in range(start, stop)]
    return collate(made, process["image"], process["text"])


@contextmanager
def environment(values: dict[str, str]) -> Any:
    """Inside, processes that are started see these variables."""
    os.environ.update(values)
    yield
    for name in values:
        del os.environ[name]


def checked(case: tuple[str, list[str]], note: str) -> tuple[float, list[str]]:
    """The error of a forecast's memory, and the cells of its row."""
    warm = (*WARM, note)
    with environment(GIVING_BACK):
        measured = peak(training, *case, note, warm=warm)
    kept = peak(training, *case, note, warm=warm)
    seconds = float(Path(note).read_text())
    told = forecast(load_recipe(*case, verb="train"), 1, "cpu", "ddp")
    predicted, step = told.peak / 2**20, 1 / told.steps
    error = predicted / measured - 1
    memory = [f"{predicted:,.0f}", f"{measured:,.0f}", f"{error:+.1%}", f"{kept:,.0f}"]
    return error, [*memory, f"{step:.2f}", f"{seconds:.2f}", f"{step / seconds - 1:+.0%}"]


def main() -> None:
    """Print the table of all cases, or of some."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    numbers = range(1, len(CASES) + 1)
    parser.add_argument("--only", nargs="+", type=int, choices=numbers, metavar="NUMBER", default=numbers)
    only = parser.parse_args().only
    torch.set_num_threads(THREADS)
    table = Table("recipe", *COLUMNS, title="Training steps on this CPU")
    errors = []
    with TemporaryDirectory() as folder:
        for number, (name, case) in enumerate(CASES.items(), start=1):
            if number in only:
                print(f"{name} ...", file=sys.stderr, flush=True)
                error, cells = checked(case, f"{folder}/seconds")
                errors.append(abs(error))
                table.add_row(name, *cells)
    Console(width=150).print(table)
    sys.exit(int(max(errors) > BOUND))


if __name__ == "__main__":
    main()
