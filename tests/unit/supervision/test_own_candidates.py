import pytest
import torch

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, rows_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.own_candidates import OwnCandidates
from vlalign.supervision.targets.identity import Identity

QUERY, KEY = [0, 1, 2], [0, 1, 2, 0, 0, 2, 9]
DATA = batch(range(3), range(7), query=(QUERY, KEY))


@pytest.mark.parametrize("side", ["query", "key"])
def test_equals_a_loop_in_mask_loss_and_gradient(side):
    features = embeddings(3, 7)
    rows = rows_of(InfoNCE(), features, DATA, Identity(), side, (OwnCandidates(),))
    mask = torch.tensor([[query == key for key in KEY] for query in QUERY])
    mask = mask if side == "query" else mask.T
    assert torch.equal(rows.dense().mask, mask)
    scores = logits(features, side)
    valid = torch.arange(len(scores)) < 3
    positive = torch.cat([scores.diagonal(), scores.new_zeros(len(scores) - 3)])
    reference = torch.where(valid, scores.masked_fill(~mask, -torch.inf).logsumexp(1) - positive, 0).sum()
    assert_same(torch.where(rows.valid, InfoNCE()(rows), 0).sum(), reference, features)
