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
    level, place, size = torch.unique(confidence, return_inverse=True, return_counts=True)
    mean = torch.zeros(len(level), dtype=torch.float64).index_add_(0, place, risk.double()) / size
    sums = mean[place[confidence.argsort(descending=True)]].cumsum(0)
    return float((sums / torch.arange(1, len(sums) + 1)).mean())
