import pytest
import torch

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, rows_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity

CAPTIONED = Identity(same=("caption",))
DATA = batch([0, 1, 2, 3, 90], range(5), caption=([0, 1, 2, 0, 91], [0, 1, 2, 0, 4]))


def kept(cosines: torch.Tensor, relevance: torch.Tensor, margin: float) -> torch.Tensor:
    """One pair at a time."""
    mask = torch.ones_like(relevance)
    for row in range(len(cosines)):
        positives = [c for c, r in zip(cosines[row], relevance[row], strict=True) if r]
        if not positives:
            continue
        highest = sum(positives) / len(positives) + margin
        for column in range(cosines.shape[1]):
            mask[row, column] = relevance[row, column] or cosines[row, column] < highest
    return mask


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.1, 0.7])
def test_equals_a_loop_in_mask_loss_and_gradient(side, margin):
    features = embeddings(5, 5, seed=3)
    rows = rows_of(InfoNCE(), features, DATA, CAPTIONED, side, (FalseNegative(margin=margin),))
    dense = rows.dense()
    mask = kept(dense.cosines.detach(), dense.targets, margin)
    assert torch.equal(dense.mask, mask)
    assert dense.mask[~rows.valid].all()
    scores = logits(features, side).masked_fill(~mask, -torch.inf)
    positive = (logits(features, side) * dense.targets).sum(1) / dense.targets.sum(1).clamp(min=1)
    reference = torch.where(rows.valid, scores.logsumexp(1) - positive, 0).sum()
    assert_same(torch.where(rows.valid, InfoNCE()(rows), 0).sum(), reference, features)


def test_a_wide_margin_leaves_everything():
    features = embeddings(5, 5)
    rows = rows_of(InfoNCE(), features, DATA, CAPTIONED, selectors=(FalseNegative(margin=2.0),))
    assert rows.dense().mask.all()


def test_positives_are_never_left_out():
    features = embeddings(5, 5)
    rows = rows_of(InfoNCE(), features, DATA, CAPTIONED, selectors=(FalseNegative(margin=-2.0),))
    dense = rows.dense()
    assert dense.mask[dense.targets].all() and not dense.mask[:4][~dense.targets[:4]].any()
    assert not rows.valid[4] and dense.mask[4].all()


def test_the_margin_is_a_difference_of_cosines():
    with pytest.raises(ValueError, match="margin must be between -2 and 2, a difference of cosines, got 3.0"):
        FalseNegative(margin=3.0)
