"""Whether a ranker knows when it is right: calibration error, and the area under the risk-coverage curve."""

import torch
from torch import Tensor


def calibration_error(scores: Tensor, right: Tensor, bins: int = 15) -> float:
    """Expected calibration error of log-odds [N], given what is right, bool [N].

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, of the probability of a yes: |share of right ones -
    mean probability| in each of `bins` equal intervals, weighed by how many pairs fall into it.
    """
    probability = scores.double().sigmoid()
    place = (probability * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, right.double() - probability)
    return (gaps.abs().sum() / len(scores)).item()


def risk_coverage(confidence: Tensor, risk: Tensor) -> float:
    """The mean risk of the k most confident of Q answers, over all k: 0 to 1, less is better. Both are [Q].

    It is the area under the curve of Geifman and El-Yaniv 2017, https://arxiv.org/abs/1705.08500, with steps
    at every coverage k / Q. Equally confident answers come in a random order, of which this is the mean.
    """
    return float(risks(confidence, risk).mean())


def risks(confidence: Tensor, risk: Tensor) -> Tensor:
    """The steps of that curve, [Q] float64: the mean risk of the k most confident answers, for k = 1 to Q."""
    sums = ordered(confidence, risk).cumsum(0)
    means: Tensor = sums / torch.arange(1, len(sums) + 1)
    return means


def ordered(scores: Tensor, worth: Tensor) -> Tensor:
    """`worth` by falling scores, float64; of those whose scores tie, the mean of theirs. All are [N]."""
    level, place, size = torch.unique(scores, return_inverse=True, return_counts=True)
    sums = torch.zeros(len(level), dtype=torch.float64).index_add_(0, place, worth.double())
    mean: Tensor = sums / size
    return mean[place[scores.argsort(descending=True)]]
