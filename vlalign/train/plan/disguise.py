"""The CPU, for as long as it only pretends, made to compute as an accelerator does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

NORMALISING = ("layer_norm", "group_norm", "rms_norm", "softmax")


@contextmanager
def as_on_accelerators(autocast: bool) -> Iterator[None]:
    """Inside, the CPU, whose tensors the step pretends to have, does what an accelerator would.

    Its autocast normalises in float32, and its attention drops out without forming the weights: both are of
    torch's own functions, which have no other switch.
    """

    def wide(function: Any) -> Any:
        def cast(x: Any) -> Any:
            return x.float() if isinstance(x, Tensor) else x

        return lambda *args, **given: function(*tree_map(cast, args), **tree_map(cast, given))

    attend: Any = F.scaled_dot_product_attention
    own = {name: wide(getattr(F, name)) for name in NORMALISING} if autocast else {}
    own["scaled_dot_product_attention"] = lambda q, k, v, attn_mask=None, dropout_p=0.0, *rest, **given: (
        attend(q, k, v, attn_mask, 0.0, *rest, **given)
    )
    with patch.multiple(F, **own):
        yield
