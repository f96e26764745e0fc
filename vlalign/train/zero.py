"""Parameters that DeepSpeed keeps elsewhere than in the module: read, clamped, or put together."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vlalign.types import RecipeError

HELD = -1  # stands for a module that runs: what it uses, DeepSpeed does not spread again


def check_stage(engine: Any) -> None:
    """Raises RecipeError for settings of DeepSpeed under which a step of several chunks is not exact."""
    if engine.gradient_accumulation_steps() != 1:
        raise RecipeError(
            "the launch file sets gradient_accumulation_steps; leave it out, and set data.chunk in the recipe"
        )
    if not hasattr(engine.optimizer, "_coalesce_grad_reduction"):
        raise RecipeError(
            f"DeepSpeed's {type(engine.optimizer).__name__} does not sum the gradients of chunks before it "
            "sends them; use zero_stage 1, 2 or 3 without data_types, or recipes/launch/ddp.yaml"
        )


@torch.no_grad()
def read_clamped(parameter: nn.Parameter, limit: float) -> float:
    """A parameter of one number as the forward reads it, brought down to `limit` in both of its copies."""
    from deepspeed.utils import safe_get_full_fp32_param

    if not parameter.requires_grad:
        return float(parameter)
    value = float(safe_get_full_fp32_param(parameter))
    if value <= limit:
        return float(torch.tensor(value, dtype=parameter.dtype))
    _set_master(parameter, limit)
    with gathered([parameter], modifier_rank=0):
        parameter.fill_(limit)
    return float(torch.tensor(limit, dtype=parameter.dtype))


def _set_master(parameter: nn.Parameter, value: float) -> None:
    """Each process sets its part: ZeRO-3 has no other way for one number, of which most have only padding."""
    from deepspeed.utils import (
        safe_get_local_fp32_param,
        safe_set_full_fp32_param,
        safe_set_local_fp32_param,
    )

    if hasattr(parameter, "ds_id"):
        part = safe_get_local_fp32_param(parameter)
        safe_set_local_fp32_param(parameter, torch.full_like(part, value))
    else:
        safe_set_full_fp32_param(parameter, torch.full_like(parameter, value, dtype=torch.float32))


@contextmanager
def gathered(parameters: Iterable[nn.Parameter], modifier_rank: int | None = None) -> Iterator[None]:
    """Inside, every parameter is whole, where ZeRO-3 has spread it; what `modifier_rank` writes stays.

    Modules that run inside leave it whole, so they wait for no other process.
    """
    from deepspeed.runtime.zero import GatheredParameters

    spread: list[Any] = [p for p in parameters if hasattr(p, "ds_id")]
    with GatheredParameters(spread, modifier_rank=modifier_rank, enabled=bool(spread)):
        for parameter in spread:
            parameter.ds_active_sub_modules.add(HELD)
        try:
            yield
        finally:
            for parameter in spread:
                parameter.ds_active_sub_modules.discard(HELD)
