"""InfoNCE, van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, eq. 4; in both directions, CLIP's."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlalign.ops.reductions import ALL, TARGETS, Expected, LogSumExp, Reduction
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("info_nce")
@dataclass(frozen=True, kw_only=True)
class InfoNCE:
    """Cross-entropy of each row's softmax with its targets.

    Several positives: `mean_of_logs` averages their log-probabilities by relevance (Khosla et al. 2020, eq.
    2), `log_of_sum` takes the log of their total probability, which never pushes a positive away.
    `label_smoothing` spreads that share of the targets evenly over all keys of the row. `temperature`: its
    own, on cosines, in place of the model's scale and bias.
    """

    label_smoothing: float = 0.0
    positives: Literal["mean_of_logs", "log_of_sum"] = "mean_of_logs"
    temperature: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be >= 0 and < 1, got {self.label_smoothing}")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature must be > 0, got {self.temperature}")

    @property
    def reductions(self) -> dict[str, Reduction]:
        """The positives' score, the log-sum-exp of all, and with smoothing their mean."""
        several = Expected if self.positives == "mean_of_logs" else LogSumExp
        asked: dict[str, Reduction] = {
            "positive": several(over=TARGETS, temperature=self.temperature),
            "all": LogSumExp(temperature=self.temperature),
        }
        if self.label_smoothing:
            asked["mean"] = Expected(over=ALL, temperature=self.temperature)
        return asked

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        losses = rows["all"] - rows["positive"]
        if self.label_smoothing:
            losses = losses + self.label_smoothing * (rows["positive"] - rows["mean"])
        return losses
