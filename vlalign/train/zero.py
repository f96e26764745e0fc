"""Parameters that DeepSpeed keeps elsewhere than in the module: read, set, or put together for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def read_clamped(parameter: nn.Parameter, limit: float) -> float:
    """The value of a parameter of one number, its master copy brought down to `limit` first."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

    if not parameter.requires_grad:
        return float(parameter.detach())
    value = safe_get_full_fp32_param(parameter)
    if value.item() > limit:
        value = value.clamp(max=limit)
        safe_set_full_fp32_param(parameter, value)
    return float(value)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every parameter is whole on every process, where ZeRO-3 has spread it."""
    from deepspeed.runtime.zero import GatheredParameters

    spread = [p for p in model.parameters() if hasattr(p, "ds_id")]
    with GatheredParameters(spread, enabled=bool(spread)):
        yield
