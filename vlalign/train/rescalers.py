"""The weighters of a task that learn from steps that are tried, all of them taught."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from vlalign.train.meta import Processes, teach
from vlalign.train.step import Backward
from vlalign.types import Batch


def teach_rescalers(
    processes: Processes, model: Any, task: Any, chunks: Sequence[Batch], backward: Backward,
    *, step: int, total: int,
) -> None:  # fmt: skip
    """After a step's backward, and before its move: leave their gradients in heads of the bare model."""
    for head, weighter in getattr(task, "rescalers", {}).items():
        own, weighings = model.heads[head].by_extras(head), partial(task.weighings, head)
        teach(
            processes, model, own, chunks, weighings, backward,
            inner_lr=weighter.inner_lr, step=step, total=total,
        )  # fmt: skip
