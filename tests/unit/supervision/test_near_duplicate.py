import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, rows_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.near_duplicate import NearDuplicate
from vlalign.supervision.targets.identity import Identity


def frozen(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return normalize(torch.randn(rows, 3, generator=generator, dtype=torch.float64), dim=-1)


def seen(query: Tensor, key: Tensor, name: str = "image_features") -> dict:
    data = batch(range(len(query)), range(len(key)))
    data["query_fields"][name], data["key_fields"][name] = query, key
    return data


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.8])
def test_equals_a_loop_in_mask_loss_and_gradient(side, threshold):
    features, rows_seen = embeddings(5, 6), frozen(6)
    data = seen(rows_seen[:5], rows_seen)
    rows = rows_of(InfoNCE(), features, data, Identity(), side, (NearDuplicate(threshold=threshold),))
    mask = torch.zeros(5, 6, dtype=torch.bool)
    for query in range(5):
        for key in range(6):
            mask[query, key] = query == key or float(rows_seen[query] @ rows_seen[key]) < threshold
    assert not mask.all()
    mask = mask if side == "query" else mask.T
    assert torch.equal(rows.dense().mask, mask)
    scores = logits(features, side)
    valid = torch.arange(len(scores)) < 5
    positive = torch.cat([scores.diagonal(), scores.new_zeros(len(scores) - 5)])
    reference = torch.where(valid, scores.masked_fill(~mask, -torch.inf).logsumexp(1) - positive, 0).sum()
    assert_same(torch.where(rows.valid, InfoNCE()(rows), 0).sum(), reference, features)


def test_only_near_ones_are_left_out():
    rows_seen = torch.tensor([[1.0, 0.0], [0.999, 0.0447], [0.0, 1.0]], dtype=torch.float64)
    selector = NearDuplicate(field="text_features", threshold=0.95)
    data = seen(rows_seen, rows_seen, "text_features")
    mask = rows_of(InfoNCE(), embeddings(3, 3), data, Identity(), selectors=(selector,)).dense().mask
    assert mask.tolist() == [[True, False, True], [False, True, True], [True, True, True]]


@pytest.mark.parametrize("threshold", [-1.0, 1.1])
def test_the_threshold_is_a_cosine(threshold):
    with pytest.raises(ValueError, match=f"threshold must be a cosine > -1 and <= 1, got {threshold}"):
        NearDuplicate(threshold=threshold)
