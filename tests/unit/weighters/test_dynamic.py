import math

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import batch, embeddings, gradients, losses_of, rows_of
from tests.unit.weighters.ranks import Some, context
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Context
from vlalign.weighters.dynamic import STRATEGIES, Dynamic

LOSSES = torch.tensor([0.2, 3.0, 1.1, 0.9, 2.0, 1.6], dtype=torch.float64)
HOW = list(STRATEGIES)


def weigh(losses: Tensor, strategy="linupper", temperature=1.0, **fields) -> Tensor:
    return Dynamic(strategy=strategy, temperature=temperature, warmup=0, **fields)(losses, context(losses))


def value(strategy: str, h: float) -> float:
    """f of one loss."""
    if strategy == "linupper":
        return min(h + 1, 1)
    if strategy == "quadratic":
        return 1 - h**2
    return abs(h) if strategy == "extremes" else (h + 1) / 2


def naive(losses: Tensor, strategy: str, temperature: float) -> list[float]:
    """One row at a time, mean one."""
    low, high = float(losses.min()), float(losses.max())
    exps = []
    for loss in losses.tolist():
        h = 2 * (loss - (low + high) / 2) / max(high - low, 1e-6)
        exps.append(math.exp(value(strategy, h) / temperature))
    return [len(exps) * each / sum(exps) for each in exps]


@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.1])
@pytest.mark.parametrize("strategy", HOW)
def test_equals_a_loop(strategy, temperature):
    weights = weigh(LOSSES, strategy, temperature)
    wanted = torch.tensor(naive(LOSSES, strategy, temperature), dtype=torch.float64)
    torch.testing.assert_close(weights, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("strategy", HOW)
def test_a_high_temperature_or_equal_losses_are_unweighted(strategy):
    torch.testing.assert_close(weigh(LOSSES, strategy, 1e9), torch.ones_like(LOSSES), atol=1e-8, rtol=0)
    assert torch.equal(weigh(torch.full((4,), 1.7), strategy, 0.1), torch.ones(4))


@pytest.mark.parametrize(
    ("temperature", "ratio"), [(1.0, math.e), (0.3, math.exp(10 / 3)), (0.1, math.exp(10))]
)
@pytest.mark.parametrize("strategy", HOW)
def test_the_temperature_bounds_the_ratio_of_weights(strategy, temperature, ratio):
    weights = weigh(torch.linspace(0, 1, 101, dtype=torch.float64), strategy, temperature)
    assert float(weights.max() / weights.min()) == pytest.approx(ratio)


def test_shapes_of_the_strategies():
    line = torch.linspace(0, 4, 9, dtype=torch.float64)
    lin, quadratic, extremes, upper = (weigh(line, strategy, 0.3) for strategy in HOW)
    assert (lin.diff()[:4] > 0).all() and (lin[4:] - lin[4]).abs().max() < 1e-12
    assert quadratic.argmax() == 4 and torch.allclose(quadratic, quadratic.flip(0))
    assert extremes.argmin() == 4 and torch.allclose(extremes, extremes.flip(0))
    assert (upper.diff() > 0).all()


@pytest.mark.parametrize("strategy", HOW)
def test_a_change_of_units_changes_nothing(strategy):
    torch.testing.assert_close(weigh(3 * LOSSES + 8, strategy, 0.3), weigh(LOSSES, strategy, 0.3))


@pytest.mark.parametrize("strategy", HOW)
def test_weights_maximise_the_regularised_mean_strength(strategy):
    """sum w f - r KL(w || uniform): its maximum is r log mean exp(f / r), and no other weights reach it."""
    temperature, generator = 0.3, torch.Generator().manual_seed(0)
    h = 2 * (LOSSES - LOSSES.min()) / (LOSSES.max() - LOSSES.min()) - 1
    strength = torch.tensor([value(strategy, float(each)) for each in h], dtype=torch.float64)

    def gain(w: Tensor) -> float:
        divergence = (w * (w * len(w)).clamp(min=1e-300).log()).sum()
        return float((w * strength).sum() - temperature * divergence)

    weights = weigh(LOSSES, strategy, temperature) / len(LOSSES)
    best = temperature * (float((strength / temperature).logsumexp(0)) - math.log(len(LOSSES)))
    assert gain(weights) == pytest.approx(best, abs=1e-12)
    for _ in range(200):
        other = torch.rand(len(LOSSES), generator=generator, dtype=torch.float64)
        assert gain(other / other.sum()) < best
        near = (weights + 1e-3 * torch.randn(len(LOSSES), generator=generator)).clamp(min=1e-6)
        assert gain(near / near.sum()) < best


def test_an_outlier_presses_the_others_together_unless_a_quantile_is_the_largest():
    losses = torch.cat(
        [torch.linspace(0, 1, 20, dtype=torch.float64), torch.tensor([1e4], dtype=torch.float64)]
    )
    pressed, kept = weigh(losses, temperature=0.3), weigh(losses, temperature=0.3, quantile=0.95)
    assert float(pressed[:20].max() / pressed[:20].min()) < 1.001
    assert float(kept[:20].max() / kept[:20].min()) == pytest.approx(math.exp(1 / 0.3))
    assert kept[20] == kept[19] and float(kept.mean()) == pytest.approx(1)


def test_the_first_steps_are_unweighted():
    early = Dynamic(warmup=3)
    for step in (1, 3):
        assert torch.equal(early(LOSSES, context(LOSSES, step=step)), torch.ones_like(LOSSES))
    assert not torch.equal(early(LOSSES, context(LOSSES, step=4)), torch.ones_like(LOSSES))


@pytest.mark.parametrize("strategy", HOW)
def test_extremes_and_mean_are_of_every_rank(strategy):
    """Two ranks with uneven shares and a row that is not valid, against one."""
    valid = torch.tensor([True, True, False, True, True, True])
    losses = LOSSES.where(valid, 0)
    how = Dynamic(strategy=strategy, temperature=0.3, warmup=0)
    whole = how(losses, context(losses, valid))
    shares = []
    for part in (slice(0, 4), slice(4, 6)):
        rows = Some(valid[part], [losses.masked_fill(~valid, -torch.inf)])
        shares.append(how(losses[part], Context({}, rows, 1, 9)))
    torch.testing.assert_close(torch.cat(shares), whole)
    torch.testing.assert_close(whole[valid], torch.tensor(naive(LOSSES[valid], strategy, 0.3)).double())
    assert whole[2] == 0 and float(whole.sum()) == pytest.approx(5)


def test_no_valid_row_is_no_weight():
    losses = torch.zeros(3)
    none = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(Dynamic(warmup=0)(losses, context(losses, none)), torch.zeros(3))


def test_weights_have_no_gradient_and_the_table_is_read():
    features, data = embeddings(5, 5), batch(range(5), range(5))
    losses = losses_of(InfoNCE(), features, data, Identity())
    rows = rows_of(InfoNCE(), features, data, Identity())
    weights = Dynamic(temperature=0.3, warmup=0)(losses, Context(data, rows, 1, 1))
    assert not weights.requires_grad
    constant = torch.tensor(naive(losses.detach(), "linupper", 0.3), dtype=torch.float64)
    for mine, other in zip(
        gradients((weights * losses).sum(), features),
        gradients((constant * losses).sum(), features),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


def test_bf16_losses_are_weighed_in_float32():
    weights = weigh(LOSSES.bfloat16(), temperature=0.1)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), weigh(LOSSES, temperature=0.1), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"temperature": 0.0}, "temperature must be > 0, got 0.0"),
        ({"warmup": -1}, "warmup must be >= 0, got -1"),
        ({"quantile": 1.5}, "quantile must be > 0 and <= 1, got 1.5"),
    ],
)
def test_ranges(fields, told):
    with pytest.raises(ValueError, match=told):
        Dynamic(**fields)


def test_a_task_without_a_table_is_refused():
    with pytest.raises(ValueError, match="the task has none; use align"):
        Dynamic(warmup=0)(LOSSES, Context({}, None, 1, 1))
