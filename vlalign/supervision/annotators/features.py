"""What a frozen encoder makes of each row, for targets that compare it (as CWCL, https://arxiv.org/abs/2309.14580)."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlalign.registry import ANNOTATORS
from vlalign.specs import Frozen


@ANNOTATORS.register("features")
@dataclass(frozen=True, kw_only=True)
class Features:
    """Unit rows. `model`: a saved one, folder or Hub id; None: this run's own locked tower."""

    side: Literal["image", "text"]
    model: str | None = None

    vectors = True

    def __call__(self, rows: Frozen) -> Tensor:
        """Float32 [N, D]."""
        return rows.features(self.side, self.model)
