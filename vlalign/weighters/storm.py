"""STORM, self-taught meta loss rescaling, Heck et al. 2024, https://arxiv.org/abs/2412.12955, algorithm 1."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlalign.ops.learned import applied
from vlalign.ops.precision import wide
from vlalign.ops.weighing import mean_one, standardised, table_of
from vlalign.registry import WEIGHTERS
from vlalign.types import Context, Rows

FEATURES, WIDTH = 3, 32


@WEIGHTERS.register("storm")
@dataclass(frozen=True, kw_only=True)
class Storm:
    """A small network weighs a row by what the model makes of it, and learns from the same noisy rows.

    It sees the row's loss, the probability p of its positive, and log p / (1 - p), the margin of the positive
    over the log-sum-exp of the negatives. Loss and margin are standardised over the valid rows of all ranks,
    and so do weights average one over them: else, to weigh nothing at all would be best. What several passes
    with dropout say, which is in the paper, is left out. It begins with equal weights. These three numbers
    and the network, of one hidden layer, are ours: the paper's are not public in such detail.

    It learns from steps that are tried and taken back (`vlalign/train/meta.py`): half of the rows, another
    half each time, make a step of gradient descent at the rate `inner_lr`, and the weighted loss of the other
    half judges it. It shares the run's optimizer and the norm that is clipped. `simulate`: it learns so, but
    every row counts once.
    """

    inner_lr: float = 0.1
    simulate: bool = False

    coupled = True
    reads = ("positive", ("all", "negatives"))

    def __post_init__(self) -> None:
        if not self.inner_lr > 0:
            raise ValueError(f"inner_lr must be > 0, got {self.inner_lr}")

    def head(self, dim: int) -> nn.Module:
        """From the features of a row, whatever the width of embeddings, to the logit of its rate."""
        last = nn.Linear(WIDTH, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.ReLU(), last)

    @torch.no_grad()
    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [Q]."""
        if self.simulate:
            return torch.ones_like(losses)
        return mean_one(self.rates(losses, context), table_of(context))

    def rates(self, losses: Tensor, context: Context) -> Tensor:
        """Weights [Q] before their mean is 1, between 0 and 1, with a gradient by the head alone."""
        if context.features is None:
            raise ValueError("storm finds its head with the embeddings, and the task has none; use align")
        inputs = self.inputs(losses, table_of(context))
        logits: Tensor = applied(self.head, context.features, inputs)
        return logits.squeeze(1).sigmoid()

    @torch.no_grad()
    def inputs(self, losses: Tensor, rows: Rows) -> Tensor:
        """What the network sees of each row [Q, 3]."""
        margin = _margin(rows)
        seen = [standardised(losses, rows), margin.sigmoid(), standardised(margin, rows)]
        return torch.stack(seen, 1)


def _margin(rows: Rows) -> Tensor:
    """log p / (1 - p) [Q]. Raises ValueError when the objective does not let it be known."""
    positive = wide(rows["positive"])
    if "negatives" in rows:
        return positive - rows["negatives"]
    if "all" not in rows:
        raise ValueError(
            "storm reads the reductions 'positive' and 'all' or 'negatives'; the objective names "
            f"{', '.join(rows)}"
        )
    log_p = positive - rows["all"]
    return log_p - (-log_p.expm1()).clamp(min=torch.finfo(log_p.dtype).eps).log()
