"""An objective outside the package, one file: a recipe names it `tests.recipes.outside:Hinge`."""

from dataclasses import dataclass

import torch

from vlalign.ops.reductions import Expected, Max, Over


@dataclass(frozen=True, kw_only=True)
class Hinge:
    """max(0, margin + hardest negative - positive), in cosine."""

    margin: float = 0.2
    reductions = {
        "positive": Expected(temperature=1.0),
        "hardest": Max(over=Over.NEGATIVES, temperature=1.0),
    }

    def __call__(self, rows):
        return torch.relu(self.margin + rows["hardest"] - rows["positive"])
