"""A run that cannot go on, told so that something can be done about it."""

import math
from collections.abc import Sequence

from vlalign.types import UserError

SHOWN = 8  # ids in the message
STILL = "the optimizer has not moved"


class Diverged(UserError):
    """A loss or a gradient that is not finite."""


def check_finite(step: int, loss: float, norm: float, ids: Sequence[str], state: str = STILL) -> None:
    """Raise Diverged unless both are finite. `ids`: of this process; `state`: what became of the weights."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    raise Diverged(
        f"step {step}: the loss is {loss}, the norm of its gradient {norm}; {state}. "
        f"Rows of this batch: {', '.join(ids[:SHOWN])}{more}. "
        "Look at these rows; or lower optim.lr, lengthen the warm-up, set optim.clip=1 or precision=fp32"
    )
