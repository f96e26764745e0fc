from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import assert_same, embeddings, gradients
from vlalign.objectives.embedding.sup_re_mix import SupReMix
from vlalign.types import Context, Embeddings, UserError

NUMBERS, KEYS = [0.25, 0.5, 0.5, 0.75, 0.125, 0.625], [0.25, 0.5, 0.5, 0.75, 0.125, 0.625, 0.375, 0.25]
WIDE = SupReMix(field="age", window=0.3, mixtures=3)


def context(numbers=NUMBERS, keys=KEYS, step: int = 2) -> Context:
    sides = {"query_fields": numbers, "key_fields": keys}
    return Context({side: {"age": torch.tensor(x)} for side, x in sides.items()}, None, step, 10)


def unit(one: Tensor, other: Tensor, share: Tensor | float) -> Tensor:
    raw = share * one + (1 - share) * other
    return raw / raw.norm()


def lots(rows: int, columns: int, generator: torch.Generator) -> list[list[float]]:
    return torch.rand(rows, columns, generator=generator).tolist()


def drawn(lot: list[float], allowed: list[int], count: int) -> list[int]:
    return sorted(allowed, key=lambda j: -lot[j])[:count]


def mixtures(loss: SupReMix, features: Embeddings, numbers=NUMBERS, keys=KEYS, step: int = 2):
    """Of each row: [(negative, its number)], and [(positive, its number)]."""
    query, key, rows, columns = features.query, features.key, len(numbers), len(keys)
    generator, count = torch.Generator().manual_seed(step), min(loss.mixtures, len(keys))
    first = lots(rows, columns, generator)
    uniform = torch.rand(rows, count, 9, generator=generator, dtype=torch.float64)
    below, above = lots(rows, columns, generator), lots(rows, columns, generator)
    made = []
    for i, own in enumerate(numbers):
        negatives, positives = [], []
        for c, j in enumerate(drawn(first[i], [j for j in range(columns) if keys[j] != own], count)):
            share = sorted(uniform[i, c].tolist())[1]
            negatives.append((unit(query[i], key[j], share), share * own + (1 - share) * keys[j]))
        low = drawn(below[i], [j for j in range(columns) if own - loss.window < keys[j] < own], count)
        high = drawn(above[i], [j for j in range(columns) if own < keys[j] < own + loss.window], count)
        for j, k in zip(low, high, strict=False):
            share = (keys[k] - own) / (keys[k] - keys[j])
            assert 0 < share < 1
            positives.append((unit(key[j], key[k], share), share * keys[j] + (1 - share) * keys[k]))
        made.append((negatives, positives))
    return made


def naive(loss: SupReMix, features: Embeddings, numbers=NUMBERS, keys=KEYS, step: int = 2) -> Tensor:
    losses = []
    for i, (negatives, positives) in enumerate(mixtures(loss, features, numbers, keys, step)):
        mixed = [(x.detach() if loss.detached else x, y) for x, y in negatives + positives]
        everything = [*zip(features.key, keys, strict=True), *mixed]
        exps = [(features.query[i] @ x / loss.temperature).exp() for x, _ in everything]
        weights = [1 + loss.distance_weight * abs(numbers[i] - y) for _, y in everything]
        total = sum(w * e for w, e in zip(weights, exps, strict=True))
        found = [e for e, (_, y) in zip(exps[: len(keys)], everything, strict=False) if y == numbers[i]]
        found += exps[len(keys) + len(negatives) :]
        losses.append(-sum((e / total).log() for e in found) / len(found))
    return torch.stack(losses)


@pytest.mark.parametrize(
    "loss",
    [
        WIDE,
        replace(WIDE, detached=False),
        replace(WIDE, mixtures=20, temperature=1.0, distance_weight=3.0),
        SupReMix(field="age"),  # a window that holds no key
    ],
)
@pytest.mark.parametrize("step", [2, 3])
def test_equals_a_loop(loss, step):
    features = embeddings(6, 8, 5)
    mine, reference = loss(features, context(step=step)), naive(loss, features, step=step)
    torch.testing.assert_close(mine, reference, atol=1e-9, rtol=1e-9)
    assert_same(mine.square().sum(), reference.square().sum(), features, atol=1e-9)


def test_there_are_mixtures_of_both_kinds_in_these_tests():
    made = mixtures(WIDE, embeddings(6, 8, 5))
    assert all(len(negatives) == 3 for negatives, _ in made)
    assert sum(len(positives) for _, positives in made) > 4


def test_numbers_of_mixtures():
    features = embeddings(6, 8, 5)
    for i, (negatives, positives) in enumerate(mixtures(WIDE, features)):
        assert all(abs(number - NUMBERS[i]) < 1e-12 for _, number in positives)
        assert all(number != NUMBERS[i] for _, number in negatives)


def test_without_mixtures_and_distance_it_is_supervised_contrast():
    features = embeddings(6, 8)
    loss = SupReMix(field="age", mixtures=0, distance_weight=0.0)
    same = torch.tensor(NUMBERS)[:, None] == torch.tensor(KEYS)
    log_p = (features.query @ features.key.T / 0.3).log_softmax(1)
    assert_same(loss(features, context()).sum(), -((log_p * same).sum(1) / same.sum(1)).sum(), features)


def test_distance_only_adds_to_the_loss():
    features = embeddings(6, 8)
    losses = [replace(WIDE, distance_weight=weight)(features, context()) for weight in (0.0, 1.0, 2.0)]
    assert (losses[0] < losses[1]).all() and (losses[1] < losses[2]).all()
    equal = context([0.5] * 6, [0.5] * 8)
    torch.testing.assert_close(WIDE(features, equal), replace(WIDE, distance_weight=0.0)(features, equal))


def test_a_mixed_negative_is_nearer_than_the_plain_one():
    features = embeddings(6, 8)
    only = replace(WIDE, window=1e-9, distance_weight=0.0, mixtures=1)
    for negatives, _ in mixtures(only, features):
        assert negatives
    key = embeddings(6, 6, seed=4).key
    for i in range(6):
        mixed = unit(features.query[i], key[i], 0.2)
        assert features.query[i] @ mixed > features.query[i] @ key[i]
    assert (only(features, context()) > replace(only, mixtures=0)(features, context())).all()


def test_detached_mixtures_have_no_slope():
    """Two keys of numbers unlike the query's: what the mixed one adds to the slope of its key."""
    features, told = embeddings(2, 2), context([0.0, 1.0], [0.0, 1.0])
    loss = SupReMix(field="age", mixtures=1, distance_weight=0.0)
    query, key = features.query.detach(), features.key
    (negatives, _), _ = mixtures(loss, features, [0.0, 1.0], [0.0, 1.0])
    logits = torch.cat([key @ query[0], (negatives[0][0].detach() @ query[0])[None]]) / 0.3
    by_hand = torch.autograd.grad(-logits.log_softmax(0)[0], key)[0]
    torch.testing.assert_close(gradients(loss(features, told)[0], features)[1], by_hand)
    attached = gradients(replace(loss, detached=False)(features, told)[0], features)[1]
    assert (attached - by_hand).abs().max() > 1e-3


def test_adding_a_number_to_all_changes_nothing():
    features = embeddings(6, 8)
    moved = context([x + 0.125 for x in NUMBERS], [x + 0.125 for x in KEYS])
    torch.testing.assert_close(WIDE(features, moved), WIDE(features, context()))


def test_an_order_that_fits_the_numbers_has_the_lower_loss():
    numbers = [0.0, 0.25, 0.5, 0.75, 1.0]
    angles = torch.tensor(numbers, dtype=torch.float64)
    rows = torch.stack([angles.cos(), angles.sin()], 1)
    one = torch.ones(1, dtype=torch.float64)
    features, swapped = Embeddings(rows, rows, one, one), [0.0, 1.0, 0.5, 0.75, 0.25]
    for loss in (WIDE, replace(WIDE, mixtures=0)):
        fits, fails = (loss(features, context(x, x)).mean() for x in (numbers, swapped))
        assert fits < fails


def test_real_and_mixed_scores_share_one_scale():
    """At a low temperature a shift of one of both by its own maximum would change the loss by far."""
    features = embeddings(6, 8)
    cold = replace(WIDE, temperature=0.002)
    assert cold(features, context()).isfinite().all()
    torch.testing.assert_close(
        replace(WIDE, temperature=0.02)(features, context()), naive(replace(WIDE, temperature=0.02), features)
    )


def test_gradcheck_one_row_and_bf16():
    features, told = embeddings(4, 5, 3), context(NUMBERS[:4], KEYS[:5])
    loss = replace(WIDE, detached=False, window=0.6)
    assert torch.autograd.gradcheck(
        lambda q, k: loss(replace(features, query=q, key=k), told), (features.query, features.key)
    )
    assert WIDE(embeddings(1, 1), context([0.5], [0.5])).tolist() == [0]
    small = loss(embeddings(4, 5, 3, dtype=torch.bfloat16), told)
    torch.testing.assert_close(small.double(), loss(features, told), atol=0.03, rtol=0.03)


def test_numbers_outside_of_0_to_1_are_refused():
    with pytest.raises(UserError, match="'age' goes from 3 to 60; rescale it"):
        WIDE(embeddings(2, 2), context([3, 60], [3, 60]))


@pytest.mark.parametrize(
    ("field", "told"),
    [("temperature", "> 0"), ("window", "> 0"), ("distance_weight", ">= 0"), ("mixtures", ">= 0")],
)
def test_ranges(field, told):
    with pytest.raises(ValueError, match=f"{field} must be {told}, got -1"):
        SupReMix(field="age", **{field: -1})
