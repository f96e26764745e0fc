"""How the processes share a model: what the launch file asked for is what is given, or it is refused."""

import os
from datetime import timedelta
from typing import Any

import torch

from vlalign.recipe.schemas import TrainRecipe
from vlalign.train import meta
from vlalign.types import RecipeError

REFUSED = {
    "FSDP": "use recipes/launch/zero3.yaml, which shards parameters, gradients and optimizer states too",
    "MEGATRON_LM": "use recipes/launch/zero3.yaml",
    "PARALLELISM_CONFIG": "use recipes/launch/zero3.yaml",
}
PRECISIONS = {"fp32": "no", "bf16": "bf16"}  # in accelerate's words


def precision(recipe: TrainRecipe) -> str:
    """`bf16` or `fp32`: `auto` is bf16 where the hardware has it."""
    if recipe.precision != "auto":
        return recipe.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def check(recipe: TrainRecipe, world: int, stage: int | None, precision: str) -> None:
    """Raises RecipeError where so many processes cannot run it. `stage`: of ZeRO; None: no DeepSpeed.

    `precision`: what becomes of the recipe's on the machines that are to run it.
    """
    batch = recipe.data.batch
    if batch % world:
        low = batch // world * world
        fits = f"{low} or {low + world}" if low else str(world)
        raise RecipeError(f"data.batch: {batch} rows cannot be shared by {world} processes; use {fits}")
    if stage is not None and recipe.ema is not None:
        raise RecipeError(
            "ema: averaged weights are not kept under DeepSpeed, which shards them; use ema=null"
        )
    if getattr(recipe.task, "rescalers", {}):
        meta.check(stage is not None, precision)
    if stage == 3 and recipe.compile:
        raise RecipeError(
            "compile: not under ZeRO-3, which fetches weights within the forward; use compile=false"
        )


def accelerator(recipe: TrainRecipe, patience: timedelta) -> Any:
    """accelerate's, its group of processes started. Raises RecipeError when it is not what was asked for.

    `patience`: how long a collective waits. Processes without an accelerator talk by gloo.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    asked, deepspeed = _asked(recipe), _wanted("DEEPSPEED")
    host = _wanted("CPU") or not torch.cuda.is_available()
    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    if asked > 1:  # unless gloo is named, accelerate sees one process and DeepSpeed several
        handlers.append(InitProcessGroupKwargs(backend="gloo" if host else "nccl", timeout=patience))
    if deepspeed and host:
        _compile_nothing()
    made = Accelerator(
        cpu=host and asked > 1 and not deepspeed,  # or it starts them all and shares nothing between them
        mixed_precision=PRECISIONS[precision(recipe)],
        gradient_accumulation_steps=1,  # the step owns the boundary
        kwargs_handlers=handlers,
    )
    kind, world = made.distributed_type, made.num_processes
    alone = asked > 1 and kind not in ("MULTI_CPU", "MULTI_GPU", "DEEPSPEED")
    if world != asked or alone or deepspeed != (kind == "DEEPSPEED"):
        raise RecipeError(
            f"{asked} processes were started{' for DeepSpeed' * deepspeed}, accelerate sees {world} of the "
            f"kind {kind.value}; use a file of recipes/launch/"
        )
    if deepspeed:  # or transformers would spread weights as it loads them, before a model has read its own
        made.deepspeed_plugin.dschf = None
    return made


def _asked(recipe: TrainRecipe) -> int:
    """How many processes were started. Raises RecipeError for a launch that cannot be followed."""
    for kind, instead in REFUSED.items():
        if _wanted(kind):
            raise RecipeError(f"the launch file asks for {kind}, which is not supported; {instead}")
    if "WORLD_SIZE" not in os.environ and {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys():
        raise RecipeError(
            "the launch file asks for several processes, and accelerate started one, as it does with "
            "use_cpu: true; use recipes/launch/ddp.yaml, which runs on CPUs too"
        )
    mixed = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed not in ("no", PRECISIONS[precision(recipe)]):
        raise RecipeError(
            f"mixed_precision: {mixed} in the launch file, {precision(recipe)} by the recipe; leave it out "
            "there, and say precision: bf16 or fp32 in the recipe"
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def _compile_nothing() -> None:
    """On a CPU, DeepSpeed compiles C++ for inference alone when it starts, and other runs wait for it."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _wanted(kind: str) -> bool:
    return os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true"
