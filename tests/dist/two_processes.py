"""One step of a tiny recipe, on however many processes torchrun starts; the first writes what came out."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.unit.train.tiny import TinyPair, recipe
from vlalign.data.loader import loader
from vlalign.train.runtime import Runtime
from vlalign.train.seeds import seed_step
from vlalign.train.step import cached, separable


def main(folder: str, chunk: str, name: str) -> None:
    """Gradients and loss of the first step -> `name`.safetensors in the folder."""
    one = recipe(Path(folder), model=TinyPair(dropout=0.0, scale=5.0), **{"data.chunk": int(chunk) or None})
    runtime = Runtime(replace(one, optim=replace(one.optim, clip=0.0)))
    seed_step(one.seed, step=0, rank=0)
    model = one.model.build()
    source = one.data.train.build()
    runtime.prepare(model, one.optim.build(model), one.schedule.build(one.steps))
    share = {"rank": runtime.rank, "world": runtime.world, "start_step": 2, "steps": 3, "seed": one.seed}
    batches = loader(source, model.processors(), batch=one.data.batch, chunk=one.data.chunk, **share)
    chunks = [runtime.place(each) for each in next(batches)]  # the third step meets the unreadable row
    rows = runtime.total(sum(one.task.rows(each) for each in chunks))
    backward = cached if runtime.chunked else separable
    loss = backward(runtime, runtime.model, chunks, one.task, step=1, total=12, divisor=rows / runtime.world)
    gradients = {key: p.grad.clone() for key, p in runtime.bare.named_parameters() if p.grad is not None}
    numbers = runtime.move(1, loss, rows, [row for each in chunks for row in each["ids"]])
    told = {
        "loss": torch.tensor(numbers["loss"]),
        "norm": torch.tensor(numbers["norm"]),
        "rows": torch.tensor(rows),
    }
    counts = torch.tensor([len(each["ids"]) for each in chunks])
    print(
        f"rank {runtime.rank} of {runtime.world}: {counts.tolist()} rows, loss {numbers['loss']}", flush=True
    )
    if runtime.main:
        save_file(gradients | told, Path(folder) / f"{name}.safetensors")
    runtime.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
