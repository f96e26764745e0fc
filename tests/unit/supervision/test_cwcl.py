import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.unit.ops.worlds import Largest, assert_same, batch, embeddings, logits, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.cwcl import CWCL
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings


def frozen(rows: int, width: int = 3, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=-1)


def seen(features: Tensor, **more) -> dict:
    """A batch whose rows a frozen encoder sees so."""
    data = batch(range(len(features)), range(len(features)), **more)
    for side in ("query_fields", "key_fields"):
        data[side]["image_features"] = features
    return data


def weights(features: Tensor, targets: CWCL) -> Tensor:
    query, key = ({"image_features": x} for x in (features[:, None], features[None]))
    return targets.tile(query, key)


def with_logits(table: Tensor) -> Embeddings:
    """Embeddings, not unit ones, whose logits are the table."""
    one, none = table.new_ones(1), table.new_zeros(1)
    return Embeddings(torch.eye(len(table), dtype=table.dtype), table.T.contiguous(), one, none)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("sharpness", [None, 6.0])
def test_equals_a_loop(side, sharpness):
    features, seen_as = embeddings(6, 6), frozen(6)
    scores, reference = logits(features, side), []
    for row in range(6):
        cosines = [float(seen_as[row] @ seen_as[other]) for other in range(6)]
        each = [c / 2 + 0.5 if sharpness is None else math.exp(sharpness * (c - 1)) for c in cosines]
        log_p = [scores[row][other] - scores[row].logsumexp(0) for other in range(6)]
        reference.append(-sum(w * p for w, p in zip(each, log_p, strict=True)) / sum(each))
    mine = losses_of(InfoNCE(), features, seen(seen_as), CWCL(sharpness=sharpness), side)
    torch.testing.assert_close(mine, torch.stack(reference), atol=1e-10, rtol=1e-10)
    assert_same(mine.square().sum(), torch.stack(reference).square().sum(), features)


def test_opposite_rows_are_info_nce():
    features, opposite = embeddings(2, 2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    mine = losses_of(InfoNCE(), features, seen(opposite), CWCL())
    assert_same(mine.sum(), losses_of(InfoNCE(), features, seen(opposite), Identity()).sum(), features)


def test_the_sharpest_is_info_nce_and_the_published_is_not():
    features, seen_as = embeddings(6, 6), frozen(6)
    contrast = losses_of(InfoNCE(), features, seen(seen_as), Identity())
    sharp = losses_of(InfoNCE(), features, seen(seen_as), CWCL(sharpness=1e4))
    torch.testing.assert_close(sharp, contrast)
    assert (losses_of(InfoNCE(), features, seen(seen_as), CWCL()) - contrast).abs().max() > 0.1


def test_opposite_classes_are_the_mean_of_logs_and_not_the_log_of_a_sum():
    features, classes = embeddings(6, 6), [0, 1, 0, 0, 1, 0]
    opposite = torch.tensor([[1.0 - 2 * c, 0.0] for c in classes], dtype=torch.float64)
    data, labelled = seen(opposite, concept=(classes, classes)), Identity(same=("concept",))
    mine = losses_of(InfoNCE(), features, data, CWCL())
    assert_same(mine.sum(), losses_of(InfoNCE(), features, data, labelled).sum(), features)
    other = losses_of(InfoNCE(positives="log_of_sum"), features, data, labelled)
    assert (mine - other).min() > 0.1


@dataclass(frozen=True)
class Scaled:
    """CWCL, each row times its number plus one."""

    query_fields = key_fields = ("row", "image_features")

    def tile(self, query, key):
        return CWCL().tile(query, key) * (query["row"] + 1)


def test_a_factor_of_a_row_changes_nothing():
    features, data = embeddings(6, 6), seen(frozen(6))
    mine = losses_of(InfoNCE(), features, data, CWCL())
    assert_same(mine.sum(), losses_of(InfoNCE(), features, data, Scaled()).sum(), features)


def test_the_entropy_of_the_weights_bounds_it_and_is_reached_at_their_softmax_alone():
    seen_as = frozen(6)
    share = weights(seen_as, CWCL())
    share = share / share.sum(1, keepdim=True)
    entropy = -(share * share.log()).sum(1)
    reached = losses_of(InfoNCE(), with_logits(share.log() + torch.arange(6)[:, None]), seen(seen_as), CWCL())
    torch.testing.assert_close(reached, entropy)
    for seed in range(3):
        assert (losses_of(InfoNCE(), embeddings(6, 6, seed=seed), seen(seen_as), CWCL()) > entropy).all()


def test_the_slope_by_logits_is_softmax_minus_weights():
    table = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen_as, features = frozen(6), with_logits(table)
    key = features.key.requires_grad_()
    loss = losses_of(InfoNCE(), features, seen(seen_as), CWCL()).mean()
    share = weights(seen_as, CWCL())
    expected = (table.softmax(1) - share / share.sum(1, keepdim=True)) / 6
    torch.testing.assert_close(torch.autograd.grad(loss, key)[0].T, expected)


def test_equal_features_pull_to_a_uniform_softmax():
    features, seen_as = embeddings(5, 5), frozen(1).expand(5, -1)
    loss = losses_of(InfoNCE(), features, seen(seen_as), CWCL())
    log_p = logits(features).log_softmax(1)
    torch.testing.assert_close(loss, -log_p.mean(1))


def test_a_row_is_its_own_highest_and_all_are_positive():
    for targets in (CWCL(), CWCL(sharpness=3.0)):
        share = weights(frozen(6), targets)
        assert share.amax(1).equal(share.diagonal()) and ((share >= 0) & (share <= 1)).all()
        torch.testing.assert_close(share.diagonal(), torch.ones(6, dtype=torch.float64))
    assert CWCL.all_positive


def test_published_weights_are_nearly_uniform_and_sharpness_is_against_that():
    def evenness(targets: CWCL) -> float:
        share = weights(frozen(256, width=512), targets)
        share = share / share.sum(1, keepdim=True)
        return float(-(share * share.log()).sum(1).mean()) / math.log(256)

    assert evenness(CWCL()) > 0.999 > 0.5 > evenness(CWCL(sharpness=20.0))


def test_no_gradient_reaches_the_frozen_features():
    features, seen_as = embeddings(4, 4), frozen(4).requires_grad_()
    loss = losses_of(InfoNCE(), features, seen(seen_as), CWCL()).sum()
    assert torch.autograd.grad(loss, seen_as, allow_unused=True)[0] is None


def test_the_order_of_rows_does_not_matter():
    features, seen_as, order = embeddings(6, 6), frozen(6), torch.tensor([3, 0, 5, 1, 4, 2])
    mine = losses_of(InfoNCE(), features, seen(seen_as), CWCL())
    other = replace(features, query=features.query[order], key=features.key[order])
    torch.testing.assert_close(losses_of(InfoNCE(), other, seen(seen_as[order]), CWCL()), mine[order])


def test_no_width_in_the_table_and_bf16_is_tolerated():
    rows = frozen(40, width=64)
    with Largest() as made:
        weights(rows, CWCL())
    assert made.numbers <= 40 * 64
    small = weights(rows.bfloat16(), CWCL()).double()
    torch.testing.assert_close(small, weights(rows, CWCL()), atol=0.01, rtol=0)


def test_ranges():
    with pytest.raises(ValueError, match="sharpness must be > 0, got 0"):
        CWCL(sharpness=0)
