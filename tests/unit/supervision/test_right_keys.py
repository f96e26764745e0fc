import pytest
import torch

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, rows_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.right_keys import RightKeys
from vlalign.supervision.targets.identity import Identity

KEY_ROW, KEY_QUERY = [0, 1, 2, 100, 101, 2, 102], [0, 1, 2, 0, 0, 2, 1]
DATA = batch(range(3), KEY_ROW, query=(range(3), KEY_QUERY))


@pytest.mark.parametrize("side", ["query", "key"])
def test_equals_a_loop_in_mask_loss_and_gradient(side):
    features = embeddings(3, 7)
    rows = rows_of(InfoNCE(), features, DATA, Identity(), side, (RightKeys(),))
    mask = torch.tensor(
        [[row == query for row, query in zip(KEY_ROW, KEY_QUERY, strict=True)] for _ in range(3)]
    )
    mask = mask if side == "query" else mask.T
    assert torch.equal(rows.dense().mask, mask)
    if side == "query":
        scores = logits(features, side)
        held = scores.masked_fill(~mask, -torch.inf)
        right = [[key for key in range(7) if KEY_ROW[key] == query] for query in range(3)]
        reference = sum(
            held[query].logsumexp(0) - scores[query, keys].mean() for query, keys in enumerate(right)
        )
        assert_same(torch.where(rows.valid, InfoNCE()(rows), 0).sum(), reference, features)
