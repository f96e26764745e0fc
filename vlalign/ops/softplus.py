"""log(1 + exp(x)), exact to the last digits where it is small."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def softplus(x: Tensor) -> Tensor:
    """Elementwise, differentiable as often as asked."""
    return _Softplus.apply(x) if x.device.type == "cpu" else -logsigmoid(-x)


class _Softplus(torch.autograd.Function):
    """On the CPU, where log1p takes ten times as long as log, and six times as long as what stands here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        small = x.abs().neg_().exp_()
        one = small + 1
        lost = small - (one - 1)  # in rounding
        return one.log_().add_(lost).add_(x.clamp(min=0))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return upstream * x.sigmoid()
