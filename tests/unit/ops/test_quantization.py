"""Rounding, GPTQ, its weighted moments and rotations, each against a loop written by hand."""

import math

import pytest
import torch

from vlalign.ops import quantization
from vlalign.ops.quantization import (
    Moments,
    gptq,
    orthogonal,
    round_to_nearest,
    scales,
    token_weights,
    weighted_error,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def inputs(tokens: int = 60, width: int = 12, seed: int = 1) -> torch.Tensor:
    """Correlated, as those of a layer are."""
    return drawn(tokens, width, seed=seed) @ drawn(width, width, seed=seed + 1)


def moments(x: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    found = Moments(x.shape[1])
    found.add(x, weights)
    return found.value


def rounded(value: float, low: float, high: float, bits: int, symmetric: bool) -> tuple[int, float]:
    """The level and the new value of one weight, whose group goes from `low` to `high`."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(high, -low)
        low = -high
    scale = (high - low) / (2**bits - 1) or 1.0
    zero = 0 if symmetric else -(2 ** (bits - 1)) - round(low / scale)
    level = min(max(round(value / scale) + zero, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
    return level, (level - zero) * scale


def by_hand(weight, h, bits, group, symmetric, damping, act_order):
    """Optimal brain quantization in a fixed order: the inverse of what is left is made anew each time."""
    rows, columns = weight.shape
    group = group or columns
    h = h.clone()
    mean = h.diagonal().mean()
    for i in range(columns):
        h[i, i] = (h[i, i] if h[i, i] != 0 else 1.0) + damping * mean
    order = list(range(columns))
    if act_order:
        order.sort(key=lambda i: -float(h[i, i]))
    left, levels = weight.clone(), torch.zeros(rows, columns, dtype=torch.int8)
    for step, i in enumerate(order):
        rest = order[step:]
        inverse = h[rest][:, rest].inverse()
        for row in range(rows):
            start = i // group * group
            own = weight[row, start : start + group]
            level, new = rounded(left[row, i].item(), own.min().item(), own.max().item(), bits, symmetric)
            error = (left[row, i].item() - new) / inverse[0, 0]
            for place, j in enumerate(rest):
                left[row, j] -= error * inverse[0, place]
            levels[row, i], left[row, i] = level, new
    return levels, left


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, None), (3, 4), (4, 6), (8, 12)])
def test_the_nearest_level_is_that_of_a_loop(bits, group, symmetric):
    weight = drawn(5, 12)
    found = round_to_nearest(weight, bits, group, symmetric)
    width = group or 12
    for row in range(5):
        for column in range(12):
            start = column // width * width
            own = weight[row, start : start + width]
            level, value = rounded(
                weight[row, column].item(), own.min().item(), own.max().item(), bits, symmetric
            )
            assert found.levels[row, column] == level
            assert found.weight[row, column].item() == pytest.approx(value, abs=1e-12)
    assert found.levels.min() >= -(2 ** (bits - 1)) and found.levels.max().item() < 2 ** (bits - 1)
    most = found.scales.scale.repeat_interleave(width, 1) * (1.01 if symmetric else 0.501)
    assert ((found.weight - weight).abs() <= most).all()


def test_zero_stays_zero_and_a_row_of_zeros_is_kept():
    weight = drawn(3, 8).abs() + 1  # zero is outside of all ranges, and must be a level all the same
    weight[:, 3], weight[1] = 0, 0
    for symmetric in (False, True):
        found = round_to_nearest(weight, 3, 4, symmetric)
        assert (found.weight[:, 3] == 0).all() and (found.weight[1] == 0).all()
        assert (found.scales.scale > 0).all()


def test_columns_that_no_group_has_are_refused():
    with pytest.raises(ValueError, match="12 columns cannot be shared by groups of 5"):
        scales(drawn(2, 12), 4, 5)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group", "symmetric"), [(2, None, False), (3, 4, True), (4, 6, False)])
@pytest.mark.parametrize("block", [5, 128])
def test_gptq_is_a_loop_that_inverts_anew(bits, group, symmetric, act_order, block, monkeypatch):
    monkeypatch.setattr(quantization, "BLOCK", block)
    weight, h = drawn(4, 12), moments(inputs())
    found = gptq(weight, h, bits, group, symmetric, 0.01, act_order)
    levels, left = by_hand(weight, h, bits, group, symmetric, 0.01, act_order)
    assert (found.levels == levels).all()
    torch.testing.assert_close(found.weight, left, atol=1e-9, rtol=1e-9)


def test_without_correlations_gptq_rounds_to_nearest():
    weight, h = drawn(4, 12), torch.diag(torch.rand(12, dtype=torch.float64) + 0.5)
    for act_order in (False, True):
        found = gptq(weight, h, 3, 4, act_order=act_order)
        assert (found.levels == round_to_nearest(weight, 3, 4).levels).all()


def test_a_dead_column_is_rounded_and_changes_no_other():
    x = inputs()
    x[:, [2, 7]] = 0
    weight, near = drawn(4, 12), round_to_nearest(drawn(4, 12), 3, 4)
    found = gptq(weight, moments(x), 3, 4)
    levels, left = by_hand(weight, moments(x), 3, 4, False, 0.01, False)
    assert (found.levels == levels).all() and found.weight.isfinite().all()
    assert (found.levels[:, [2, 7]] == near.levels[:, [2, 7]]).all()
    assert not (found.levels == near.levels).all()
    nothing = gptq(weight, torch.zeros(12, 12, dtype=torch.float64), 3, 4)
    assert (nothing.levels == near.levels).all()


def test_equal_scores_are_plain_gptq_bit_for_bit():
    x, weight = inputs().float(), drawn(4, 12).float()
    own = token_weights(torch.full((60,), 0.1), 0.01, 1.0)
    assert (own == 1).all()
    assert torch.equal(moments(x), moments(x, own))
    assert torch.equal(gptq(weight, moments(x), 3).weight, gptq(weight, moments(x, own), 3).weight)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_weights_are_those_of_a_loop_and_sum_to_the_tokens(power):
    scores = drawn(9)
    least, most = min(scores.tolist()), max(scores.tolist())
    spread = [(0.1 + 0.9 * (each - least) / (most - least)) ** power for each in scores.tolist()]
    found = token_weights(scores, 0.1, 1.0, power)
    torch.testing.assert_close(found, torch.tensor(spread, dtype=torch.float64) / (math.fsum(spread) / 9))
    assert found.sum().item() == pytest.approx(9) and (found > 0).all()
    torch.testing.assert_close(found, token_weights(7 * scores - 3, 0.1, 1.0, power))
    bf16 = token_weights(scores.bfloat16(), 0.1, 1.0, power)
    torch.testing.assert_close(bf16, found, atol=0.03, rtol=0)


@pytest.mark.parametrize("at_once", [1, 8, 1024])
def test_moments_are_those_of_a_loop_over_texts_and_tokens(at_once, monkeypatch):
    monkeypatch.setattr("vlalign.ops.quantization.TOKENS", at_once)
    texts = [inputs(tokens, 4, seed) for tokens, seed in ((3, 1), (5, 3), (2, 5))]
    weights = [token_weights(drawn(len(x), seed=9), 0.1, 1.0) for x in texts]
    found, slow = Moments(4), torch.zeros(4, 4, dtype=torch.float64)
    for x, w in zip(texts, weights, strict=True):
        found.add(x, w)
        for j in range(len(x)):
            for a in range(4):
                for b in range(4):
                    slow[a, b] += 2 / 3 * w[j] * x[j, a] * x[j, b]
    torch.testing.assert_close(found.value, slow)
    torch.testing.assert_close(found.value, found.value.T)
    assert torch.linalg.eigvalsh(found.value).min() >= -1e-9
    rough = Moments(4)
    for x, w in zip(texts, weights, strict=True):
        rough.add(x.bfloat16(), w)
    torch.testing.assert_close(rough.value, slow, atol=0.1, rtol=0.05)


def test_the_order_of_tokens_says_nothing():
    x, w, order = inputs(), token_weights(drawn(60, seed=4), 0.01, 1.0), torch.randperm(60)
    torch.testing.assert_close(moments(x, w), moments(x[order], w[order]))


def test_a_token_twice_is_a_token_of_twice_the_weight_and_whole_weights_repeat():
    x = inputs()
    counts = torch.arange(60) % 4
    repeated = x.repeat_interleave(counts, 0)
    torch.testing.assert_close(moments(x, counts.double()), moments(repeated))
    twice, once = torch.ones(60, dtype=torch.float64), torch.cat([x, x[:1]])
    twice[0] = 2
    normalised = moments(x, twice / twice.mean()) / 60
    torch.testing.assert_close(normalised, moments(once) / 61)
    scale = gptq(drawn(4, 12), moments(x, counts.double()), 3).levels
    assert (scale == gptq(drawn(4, 12), 5 * moments(repeated), 3).levels).all()


def test_the_error_of_what_comes_out_is_told_by_the_moments():
    x, w, change = inputs(), token_weights(drawn(60, seed=4), 0.1, 1.0), drawn(4, 12, seed=6)
    slow = sum(2 * w[j] * (change @ x[j]).square().sum() for j in range(60))
    torch.testing.assert_close(weighted_error(change, moments(x, w)), slow)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_is_better_than_rounding_on_typical_draws(bits):
    better = 0
    for seed in range(20):
        x, weight = inputs(seed=10 * seed), drawn(8, 12, seed=seed)
        h = moments(x, token_weights(drawn(60, seed=seed + 500), 0.05, 1.0))
        errors = [
            weighted_error(each.weight - weight, h)
            for each in (gptq(weight, h, bits), round_to_nearest(weight, bits))
        ]
        better += int(errors[0] <= errors[1])
    assert better >= 18


def test_weighted_moments_give_the_lower_weighted_error_on_average():
    less = 0.0
    for seed in range(20):
        x, weight = inputs(seed=10 * seed), drawn(8, 12, seed=seed)
        h = moments(x, token_weights(drawn(60, seed=seed + 500), 0.0, 1.0, 4.0))
        own, other = (weighted_error(gptq(weight, each, 3).weight - weight, h) for each in (h, moments(x)))
        less += math.log(own / other)
    assert less < 0


def test_a_rotation_is_orthogonal_its_own_by_seed_and_exact():
    turn = orthogonal(24, 0)
    torch.testing.assert_close(turn @ turn.T, torch.eye(24, dtype=torch.float64), atol=1e-13, rtol=0)
    assert torch.equal(turn, orthogonal(24, 0)) and not torch.allclose(turn, orthogonal(24, 1))
    weight, x = drawn(6, 24), drawn(9, 24, seed=3)
    torch.testing.assert_close((x @ turn) @ (weight @ turn).T, x @ weight.T, atol=1e-12, rtol=0)


def test_numbers_of_bfloat16_are_multiples_of_its_own_scale():
    weight = drawn(4, 12).bfloat16()
    for found in (round_to_nearest(weight, 3, 4), gptq(weight, moments(inputs()), 3, 4)):
        assert found.weight.dtype == torch.bfloat16 and found.scales.scale.dtype == torch.bfloat16
        exact = found.scales.spread(12)
        again = ((found.levels.float() - exact.zero.float()) * exact.scale.float()).bfloat16()
        assert torch.equal(found.weight, again)
        assert (found.weight.double() - weight.double()).abs().mean() < 0.5
