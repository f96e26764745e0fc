"""A run that cannot go on, told so that something can be done about it."""

import math
from collections.abc import Sequence
from pathlib import Path

from vlalign.files import write_json
from vlalign.train.folder import writing
from vlalign.types import UserError

SHOWN = 8  # ids in the message; the file has all
FILE = "diverged.json"
STILL = "the optimizer has not moved"


class Diverged(UserError):
    """A loss or a gradient that is not finite."""


def finite(loss: float, norm: float) -> bool:
    """Whether a run can go on."""
    return math.isfinite(loss) and math.isfinite(norm)


def diverged(
    step: int, loss: float, norm: float, ids: Sequence[str], path: Path, main: bool, state: str = STILL
) -> Diverged:
    """The error that ends a run; the `main` process writes what it is about to `path`.

    `ids`: of all processes; `state`: what became of the weights.
    """
    if main:
        with writing(path.parent):
            write_json(path, {"step": step, "loss": _plain(loss), "norm": _plain(norm), "ids": list(ids)})
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return Diverged(
        f"step {step}: the loss is {loss}, the norm of its gradient {norm}; {state}. "
        f"Rows of this batch: {', '.join(ids[:SHOWN])}{more}; {path} names all. "
        "Look at these rows; or lower optim.lr, lengthen the warm-up, set optim.clip=1 or precision=fp32"
    )


def _plain(value: float) -> float | str:
    """JSON has no word for what is not finite."""
    return value if math.isfinite(value) else str(value)
