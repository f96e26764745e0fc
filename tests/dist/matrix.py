"""Two steps of a tiny open_clip model for each objective, direct and cached, on the processes there are."""

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.methods import fields, tasks
from tests.unit.train.tiny import recipe
from vlalign.models.encoders.open_clip import OpenClip
from vlalign.models.pair import Scale
from vlalign.tasks.align import Align
from vlalign.train.ema import Average, with_momentum
from vlalign.train.rescalers import teach_rescalers
from vlalign.train.runtime import Runtime
from vlalign.train.seeds import seed_step
from vlalign.train.step import cached, separable

CORE = ("info_nce", "sigmoid", "dcl", "selector-communal")  # the last learns a head of its own
# Rows of all processes in each step: the first step's cannot be shared evenly.
SIZES = {"core": (7, 6), "every": (13, 12)}
KINDS = ("one", "ddp", "zero1", "zero2", "zero3")
HOW = {"direct": (separable, 1), "cached": (cached, 2)}  # and chunks of a process
PIXELS, LENGTH, WORDS = 16, 8, 40
CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "init_logit_bias": -2.0,  # most objectives do not read it
        "vision_cfg": {"image_size": PIXELS, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": LENGTH, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
}
REDUCTIONS = ("allreduce_", "reduce_", "reduce_scatter_", "_reduce_scatter_base_")


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Plain gradient descent, under which an error of a gradient is seen at its size."""

    lr: float = 0.02
    clip: float = 0.0

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=self.lr)


@dataclass(frozen=True, kw_only=True)
class Level:
    """No warm-up."""

    def build(self, steps: int) -> Any:
        return lambda step: 1.0


def batch(start: int, stop: int, rows: int) -> dict[str, Any]:
    """Rows `start` to `stop` of a step of so many; texts end with the largest word, as CLIP's do."""
    generator = torch.Generator().manual_seed(rows)
    pixels = torch.randn(rows, 3, PIXELS, PIXELS, generator=generator)
    words = torch.randint(1, WORDS - 1, (rows, LENGTH), generator=generator)
    words[:, -1] = WORDS - 1
    own = {name: x[start:stop] for name, x in fields(rows, CONFIG["model_cfg"]["embed_dim"]).items()}
    sides = {"query": {"pixels": pixels[start:stop]}, "key": {"input_ids": words[start:stop]}}
    return {**sides, "query_fields": own, "key_fields": own, "ids": [str(row) for row in range(start, stop)]}


def shares(start: int, stop: int, parts: int) -> Iterator[tuple[int, int]]:
    """Consecutive parts, the first ones larger by one where it must be."""
    for part in torch.arange(start, stop).tensor_split(parts):
        yield int(part[0]), int(part[-1]) + 1


@contextmanager
def reductions(runtime: Runtime) -> Iterator[list[int]]:
    """How often numbers of all processes are summed inside, DDP's own sums included, seen by the first."""
    counted: list[int] = []
    if not runtime.main:
        yield counted
        return
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        yield counted
    with TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")  # its own list of events takes seconds
        trace = (Path(folder) / "trace.json").read_text(encoding="utf-8")
    counted.extend(trace.count(f'"c10d::{name}"') for name in REDUCTIONS)


def whole(runtime: Runtime, p: nn.Parameter, gradient: bool) -> Tensor:
    """A parameter or its gradient, from wherever DeepSpeed keeps it."""
    if not runtime.deepspeed:
        return p.grad if gradient else p.detach()
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    return safe_get_full_grad(p) if gradient else safe_get_full_fp32_param(p)


def strategy(runtime: Runtime) -> str:
    """What became of the launch file's."""
    if runtime.deepspeed:
        return f"zero{runtime.model.zero_optimization_stage()}"
    return "ddp" if isinstance(runtime.model, nn.parallel.DistributedDataParallel) else "one"


def steps(
    runtime: Runtime, task: Align, how: str, double: bool, sizes: Sequence[int]
) -> Iterator[tuple[str, Tensor]]:
    """Gradients of each step, what was learned, and how often numbers of all processes were summed."""
    one, (backward, parts) = runtime.recipe, HOW[how]
    seed_step(one.seed, step=0, rank=0)
    model = one.model.build()
    model.learn_for(task.heads(model.dim))
    for embedding in (model.text.net.token_embedding.weight, model.text.net.positional_embedding):
        embedding.data.mul_(20)  # as long as trained ones: the first norm magnifies rounding in short ones
    if double:
        model.double()._encode = lambda side, x: normalize(model.tower(side)(x), dim=-1)  # its own: float32
    runtime.prepare(model, one.optim.build(model), one.schedule.build(len(sizes)))
    average = Average(model, 0.5) if task.momentum else None
    for step, rows in enumerate(sizes, start=1):
        own = list(shares(0, rows, runtime.world))[runtime.rank]
        chunks = [runtime.place(batch(*each, rows)) for each in shares(*own, parts)]
        for chunk in chunks if double else ():
            chunk["query"]["pixels"] = chunk["query"]["pixels"].double()
        if average:
            chunks = with_momentum(average, runtime.model, chunks)
        with reductions(runtime) as counted:
            loss = backward(
                runtime, runtime.model, chunks, task, step=step, total=2, divisor=rows / runtime.world
            )
        teach_rescalers(runtime, model, task, chunks, backward, step=step, total=2)
        yield f"{step}/reductions", torch.tensor(sum(counted))
        yield f"{step}/strategy", torch.tensor(KINDS.index(strategy(runtime)))
        yield from (
            (f"{step}/gradient/{name}", whole(runtime, p, True).clone())
            for name, p in model.named_parameters()
        )
        numbers = runtime.move(step, loss, rows, [])
        yield f"{step}/loss", torch.tensor(numbers["loss"])
        if average:
            average.update(step)
    yield from ((f"learned/{name}", whole(runtime, p, False).clone()) for name, p in model.named_parameters())


def main(folder: str, out: str, precision: str, which: str) -> None:
    """`core` or `every` method -> `which`_`out`_`precision`.safetensors in the folder."""
    gc.freeze()  # DeepSpeed collects each time it starts, and what is imported is much to look through
    double = precision == "fp64"
    place = Path(folder) / "model"
    settings = {
        "model": OpenClip(id=f"local-dir:{place}", scale=Scale(init=3.0)),
        "optim": Descent(),
        "schedule": Level(),
        "precision": "fp32" if double else precision,
    }
    found: dict[str, Tensor] = {}
    with Runtime(recipe(Path(folder), **settings, **{"data.batch": 6})) as runtime:
        methods = {name: each for name, each in tasks().items() if which == "every" or name in CORE}
        for (method, task), how in product(methods.items(), HOW):
            for name, value in steps(runtime, task, how, double, SIZES[which]):
                found[f"{method}/{how}/{name}"] = value.detach().double().contiguous()
        if runtime.main:
            save_file(found, Path(folder) / f"{which}_{out}_{precision}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
