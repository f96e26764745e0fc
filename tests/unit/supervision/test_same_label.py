import pytest
import torch

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, rows_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.same_label import SameLabel
from vlalign.supervision.targets.identity import Identity

QUERY, KEY = [0, 1, 0, 2, 1], [0, 1, 0, 2, 1, 0, 9]
DATA = batch(range(5), range(7), concept=(QUERY, KEY))


@pytest.mark.parametrize("side", ["query", "key"])
def test_equals_a_loop_in_mask_loss_and_gradient(side):
    features = embeddings(5, 7)
    rows = rows_of(InfoNCE(), features, DATA, Identity(), side, (SameLabel(),))
    mask = torch.zeros(5, 7, dtype=torch.bool)
    for query in range(5):
        for key in range(7):
            mask[query, key] = QUERY[query] != KEY[key] or query == key
    mask = mask if side == "query" else mask.T
    assert torch.equal(rows.dense().mask, mask)
    scores = logits(features, side)
    valid = torch.arange(len(scores)) < 5
    positive = torch.cat([scores.diagonal(), scores.new_zeros(len(scores) - 5)])
    reference = torch.where(valid, scores.masked_fill(~mask, -torch.inf).logsumexp(1) - positive, 0).sum()
    assert_same(torch.where(rows.valid, InfoNCE()(rows), 0).sum(), reference, features)


def test_distinct_labels_leave_everything():
    data = batch(range(4), range(4), subclass=(range(4), range(4)))
    rows = rows_of(InfoNCE(), embeddings(4, 4), data, Identity(), selectors=(SameLabel(field="subclass"),))
    assert rows.dense().mask.all()


def test_one_label_leaves_the_rows_own_pairs():
    data = batch(range(4), range(4), concept=([3] * 4, [3] * 4))
    rows = rows_of(InfoNCE(), embeddings(4, 4), data, Identity(), selectors=(SameLabel(),))
    assert torch.equal(rows.dense().mask, torch.eye(4).bool()) and InfoNCE()(rows).eq(0).all()
