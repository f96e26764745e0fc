"""AUC of scores pooled over queries: Sheikholeslami et al. 2025, https://arxiv.org/abs/2510.00137.

Ranks ask whether a query's own answers are in order; this asks whether one threshold serves all queries.
"""

import torch
from torch import Tensor

from vlalign.evals.metrics.ranks import TIE, shared
from vlalign.types import UserError


def pooled(
    query: Tensor, key: Tensor, query_group: Tensor, key_group: Tensor, negatives: int, block: int = 512
) -> tuple[Tensor, Tensor]:
    """Inner products [P] of all right pairs, and [N] of each query's `negatives` highest wrong keys.

    Groups are as in `rank`. Memory is `block` x K and the answer, float64: equal rows get equal scores.
    """
    parts, key = [], key.double()
    for start in range(0, len(query), block):
        rows = slice(start, start + block)
        right = shared(query_group[rows], key_group)
        parts.append(hardest(query[rows].double() @ key.T, right, negatives))
    positive, negative = (torch.cat(part) for part in zip(*parts, strict=True))
    return positive, negative


def hardest(scores: Tensor, right: Tensor, negatives: int) -> tuple[Tensor, Tensor]:
    """Of scores [Q, K]: those of right pairs [P], and each row's `negatives` highest others [N]."""
    wrong = scores.masked_fill(right, -torch.inf).topk(min(negatives, scores.shape[1])).values
    return scores[right], wrong[wrong > -torch.inf]


def auc(positive: Tensor, negative: Tensor) -> dict[str, float]:
    """`auc`, the best `f1` of one threshold, and that `threshold`, from which on a pair is called right.

    AUC is the chance that a right pair scores above a wrong one. Scores are rounded to multiples of TIE,
    and equal ones count one half. Raises UserError where there is no pair of either kind.
    """
    from sklearn.metrics import precision_recall_curve, roc_auc_score

    if not (len(positive) and len(negative)):
        raise UserError(f"AUC needs right and wrong pairs, found {len(positive)} and {len(negative)}")
    scores = (torch.cat([positive, negative]).double() / TIE).round().numpy()
    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).numpy()
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = (2 * precision * recall / (precision + recall).clip(min=1e-12))[:-1]  # the last has no threshold
    best = f1.argmax()
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "f1": float(f1[best]),
        "threshold": float(thresholds[best] * TIE),
    }


def beside_level(positive: Tensor, negative: Tensor) -> tuple[dict[str, float], dict[str, float]]:
    """`auc`, and what of it a model reaches that scores all pairs alike; nothing where no pair is wrong."""
    if not len(negative):
        return {}, {}
    alike = auc(torch.zeros_like(positive), torch.zeros_like(negative))
    return auc(positive, negative), {name: alike[name] for name in ("auc", "f1")}
