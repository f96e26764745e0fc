import math

import pytest
import torch

from vlalign.objectives.token.cross_entropy import CrossEntropy
from vlalign.types import TokenLogits


def told(tokens: int = 7, words: int = 11, scale: float = 3.0) -> TokenLogits:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(tokens, words, generator=generator, dtype=torch.float64)
    labels = torch.randint(words, (tokens,), generator=generator)
    return TokenLogits(logits, labels, torch.zeros(tokens, dtype=torch.int64))


def with_logits(features: TokenLogits, logits: torch.Tensor) -> TokenLogits:
    return TokenLogits(logits, features.labels, features.row)


def naive(features: TokenLogits, smoothing: float) -> list[float]:
    """One token and one word at a time."""
    losses = []
    for logits, label in zip(features.logits.tolist(), features.labels.tolist(), strict=True):
        total = sum(math.exp(logit) for logit in logits)
        share = [smoothing / len(logits)] * len(logits)
        share[label] += 1 - smoothing
        losses.append(
            -sum(part * math.log(math.exp(x) / total) for part, x in zip(share, logits, strict=True))
        )
    return losses


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_equals_a_loop_and_torchs_own(smoothing):
    features = told()
    losses = CrossEntropy(smoothing=smoothing)(features)
    assert losses.shape == (7,) and losses.dtype is torch.float64
    assert losses.tolist() == pytest.approx(naive(features, smoothing), abs=1e-12)
    theirs = torch.nn.functional.cross_entropy(
        features.logits, features.labels, reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(losses, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_right_by_finite_differences(smoothing):
    features, objective = told(3, 5), CrossEntropy(smoothing=smoothing)
    logits = features.logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: objective(with_logits(features, x)), logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_bf16_logits_give_the_loss_of_their_double_in_float32(smoothing):
    features, objective = told(words=2000, scale=8.0), CrossEntropy(smoothing=smoothing)
    halves = features.logits.bfloat16()
    losses = objective(with_logits(features, halves))
    assert losses.dtype is torch.float32
    wanted = objective(with_logits(features, halves.double()))
    torch.testing.assert_close(losses.double(), wanted, atol=1e-5, rtol=1e-5)


def test_logits_far_from_zero_are_finite():
    features = told()
    for shift in (-1e4, 1e4):
        moved = CrossEntropy()(with_logits(features, (features.logits + shift).float()))
        torch.testing.assert_close(moved.double(), CrossEntropy()(features), atol=5e-3, rtol=1e-3)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_ranges(smoothing):
    with pytest.raises(ValueError, match=f"smoothing must be >= 0 and < 1, got {smoothing}"):
        CrossEntropy(smoothing=smoothing)
