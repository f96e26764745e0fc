"""What is gained where the best-scored of several answers is taken."""

import torch
from torch import Tensor

from vlalign.evals.metrics.calibration import ordered


def best_of(scores: Tensor, worth: Tensor) -> Tensor:
    """The mean worth of the best-scored of n of C answers, for n = 1 to C: [C] float64. Both are [C].

    Over all draws of n without replacement. Equally good scores come in a random order, of which this is the
    mean.
    """
    count = len(scores)
    n, place = torch.arange(1, count + 1, dtype=torch.float64)[:, None], torch.arange(count - 1)
    less = ((count - place - n) / (count - 1 - place)).clamp(min=0)  # from a place to the next
    first = torch.cat([n / count, less], 1).cumprod(1)  # chances that a place is the best of those drawn
    return first @ ordered(scores, worth)
