"""Distillation of a row's softmax, Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.

Departure: not multiplied by the square of the temperature.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from vlalign.ops.precision import wide
from vlalign.ops.rows import DenseRows
from vlalign.registry import OBJECTIVES
from vlalign.types import Rows


@OBJECTIVES.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL:
    """Kullback-Leibler divergence of softmax(logits / temperature) and softmax(targets / target_temperature).

    The targets are a teacher's scores; equal ones teach too. `direction`: `forward`, of the teacher from the
    student, which gives every candidate of the teacher's some share; `reverse`, of the student from the
    teacher, which stays with some of them; `symmetric`, half of both, as UniME-V2 aligns with a judge (Gu et
    al. 2025, arXiv:2510.13515, at 0.02 for both temperatures). A teacher sure of one candidate makes
    `forward` InfoNCE, and the others boundless. A selector's weights count as yes or no.
    """

    direction: Literal["forward", "reverse", "symmetric"] = "forward"
    temperature: float = 1.0
    target_temperature: float = 1.0

    reductions: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        for name in ("temperature", "target_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")

    def __call__(self, rows: Rows) -> Tensor:
        """Losses [Q]."""
        dense: DenseRows = rows.dense()
        scores = wide(dense.logits)
        low = torch.finfo(scores.dtype).min
        student = (scores / self.temperature).masked_fill(~dense.mask, low).log_softmax(1)
        teacher = dense.targets.to(scores.dtype) / self.target_temperature
        teacher = teacher.masked_fill(~dense.mask, low).log_softmax(1)
        if self.direction == "forward":
            share = teacher.exp()
        elif self.direction == "reverse":
            share = -student.exp()
        else:
            share = (teacher.exp() - student.exp()) / 2
        return (share * (teacher - student)).where(dense.mask, 0).sum(1)
