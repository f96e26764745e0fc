import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Largest
from vlalign.ops import pairs
from vlalign.ops.pairs import logistic_sums


def numbers(size: int, seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("part", [1, 8, 2**20])
@pytest.mark.parametrize(("above", "below"), [(5, 3), (1, 7), (0, 4), (4, 0)])
def test_equals_a_loop_in_value_and_gradient(above, below, part, monkeypatch):
    monkeypatch.setattr(pairs, "PART", part)
    high, low = numbers(above, 0).requires_grad_(), numbers(below, 1).requires_grad_()
    weight, upstream = numbers(below, 2).abs(), numbers(above, 3)
    reference = 0 * high + 0 * low.sum()
    for at in range(above):
        for other in range(below):
            term = weight[other] * (1 + ((low[other] - high[at]) / 0.3).exp()).log()
            reference = reference + torch.nn.functional.one_hot(torch.tensor(at), above) * term
    mine = logistic_sums(high, low, weight, 0.3)
    torch.testing.assert_close(mine, reference)
    slopes = [torch.autograd.grad(sums @ upstream, (high, low)) for sums in (mine, reference)]
    for own, other in zip(*slopes, strict=True):
        torch.testing.assert_close(own, other)


def test_the_gradient_is_right_by_finite_differences():
    lists = [numbers(4, 0).requires_grad_(), numbers(3, 1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda *x: logistic_sums(*x, numbers(3, 2).abs(), 0.3), lists)


def test_it_never_forms_all_pairs(monkeypatch):
    monkeypatch.setattr(pairs, "PART", 256)
    high, low = numbers(100, 0).requires_grad_(), numbers(120, 1).requires_grad_()
    with Largest() as largest:
        logistic_sums(high, low, torch.ones_like(low), 0.3).sum().backward()
    assert largest.numbers <= 256
