"""Ratings learnt beside a right answer: Self-J, Ye and Ng 2024, https://arxiv.org/abs/2409.00935."""

from dataclasses import dataclass

from torch import Tensor

from vlalign.registry import ANSWER_OBJECTIVES
from vlalign.types import Answers


@ANSWER_OBJECTIVES.register("self_judge")
@dataclass(frozen=True, kw_only=True)
class SelfJudge:
    """CE(beside a right answer) + `alpha` CE(alone) + `beta` KL(beside || alone), the mean over candidates.

    Targets are ratings from 0 to 9, rounded; what lies beyond is 0 or 9. Beside a right answer the model is
    its own teacher, and KL has no gradient there. The released code takes all three over the vocabulary; here
    they are over the ten digits, which are all that is decoded: that the answer is a digit is not learnt.
    """

    alpha: float = 0.3
    beta: float = 2.0

    ratings = True  # it reads these

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")

    def __call__(self, answers: Answers) -> Tensor:
        """Losses [Q]. Raises ValueError where there are no ratings."""
        own = self.notes(answers)
        return own["beside"] + self.alpha * own["alone"] + self.beta * own["kl"]

    def notes(self, answers: Answers) -> dict[str, Tensor]:
        """The three parts before they are weighed, [Q] each."""
        if answers.ratings is None:
            raise ValueError(
                "self_judge: it wants a language model's ratings beside a right answer, and there are none"
            )
        beside, alone = answers.ratings.log_softmax(-1).unbind(-2)
        digit = (answers.target.to(beside.dtype) + 0.5).floor().clamp(0, 9).long().unsqueeze(-1)
        teacher = beside.detach()
        parts = {
            "beside": -beside.gather(-1, digit).squeeze(-1),
            "alone": -alone.gather(-1, digit).squeeze(-1),
            "kl": (teacher.exp() * (teacher - alone)).sum(-1),
        }
        count = answers.mask.sum(1).clamp(min=1)
        return {name: (each * answers.mask).sum(1) / count for name, each in parts.items()}
