import math

import pytest
import torch
from torch import Tensor

from vlalign.ops.sorting import odd_even_sort


def scores(rows: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, size, generator=generator, dtype=torch.float64) * 2 - 1


def naive(row: Tensor, steepness: float) -> tuple[Tensor, Tensor]:
    """One swap at a time."""
    values, size = list(row), len(row)
    shares = [[torch.tensor(float(i == j)).double() for j in range(size)] for i in range(size)]
    for layer in range(size):
        for a in range(layer % 2, size - 1, 2):
            b = a + 1
            stays = (steepness * (values[b] - values[a])).atan() / math.pi + 0.5
            values[a], values[b] = (
                stays * values[a] + (1 - stays) * values[b],
                (1 - stays) * values[a] + stays * values[b],
            )
            for share in shares:
                share[a], share[b] = (
                    stays * share[a] + (1 - stays) * share[b],
                    (1 - stays) * share[a] + stays * share[b],
                )
    return torch.stack(values), torch.stack([torch.stack(share) for share in shares])


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("steepness", [1.0, 10.0])
def test_equals_a_loop_in_value_and_gradient(size, steepness):
    mine = scores(3, size).requires_grad_()
    values, ranks = odd_even_sort(mine, steepness)
    reference = [naive(row, steepness) for row in mine]
    torch.testing.assert_close(values, torch.stack([each[0] for each in reference]))
    torch.testing.assert_close(ranks, torch.stack([each[1] for each in reference]))
    weights = torch.arange(size).double()
    losses = (ranks @ weights).square().sum(), sum((each[1] @ weights).square().sum() for each in reference)
    torch.testing.assert_close(*(torch.autograd.grad(loss + 0 * mine.sum(), mine)[0] for loss in losses))


def test_the_gradient_is_right_by_finite_differences():
    assert torch.autograd.gradcheck(lambda x: odd_even_sort(x, 3.0), scores(2, 5).requires_grad_())


def test_ranks_are_doubly_stochastic_and_give_the_values():
    before = scores(20, 9)
    values, ranks = odd_even_sort(before, 10.0)
    assert (ranks > 0).all()
    for dim in (1, 2):
        torch.testing.assert_close(ranks.sum(dim), torch.ones(20, 9).double())
    torch.testing.assert_close((before[:, None] @ ranks)[:, 0], values)


def test_steep_swaps_sort():
    before = scores(20, 9)
    values, ranks = odd_even_sort(before, 1e9)
    torch.testing.assert_close(values, before.sort(1).values, atol=1e-5, rtol=0)
    order = before.argsort(1).argsort(1)
    torch.testing.assert_close(ranks, torch.nn.functional.one_hot(order, 9).double(), atol=1e-5, rtol=0)


def test_a_constant_changes_no_rank():
    before = scores(5, 6)
    for mine, other in zip(odd_even_sort(before + 3, 10.0), odd_even_sort(before, 10.0), strict=True):
        torch.testing.assert_close(mine - 3 * (mine.dim() == 2), other)
