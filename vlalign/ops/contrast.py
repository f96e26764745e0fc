"""A contrast over whole rows of cosines, for objectives whose denominators differ from pair to pair."""

from torch import Tensor


def log_probabilities(scores: Tensor, weights: Tensor) -> Tensor:
    """Scores [N, M] minus the log of each row's weighted sum of exp; `weights`: bool or float >= 0.

    Each row must weigh one pair at least. What has no weight may come out above 0.
    """
    return scores - (scores + weights.to(scores).log()).logsumexp(1, keepdim=True)


def mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of a row's chosen values [N], 0 where none is chosen."""
    return values.masked_fill(~chosen, 0).sum(1) / chosen.sum(1).clamp(min=1)
