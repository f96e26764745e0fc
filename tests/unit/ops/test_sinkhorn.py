import math

import pytest
import torch
from torch import Tensor

from vlalign.ops.sinkhorn import sinkhorn


def scores(samples: int = 12, prototypes: int = 3, seed: int = 0) -> Tensor:
    """Cosines, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(samples, prototypes, generator=generator, dtype=torch.float64) - 1


def naive(table: Tensor, epsilon: float, iterations: int, rows_first: bool = True) -> Tensor:
    """Scale rows, then columns and rows in turn, a number at a time, without logarithms."""
    shares = [[math.exp(x / epsilon) for x in row] for row in table.tolist()]
    samples, prototypes = len(shares), len(shares[0])

    def to_rows() -> None:
        for row in shares:
            total = sum(row)
            row[:] = [x / total for x in row]

    if rows_first:
        to_rows()
    for _ in range(iterations):
        for k in range(prototypes):
            total = sum(row[k] for row in shares)
            for row in shares:
                row[k] *= samples / prototypes / total
        to_rows()
    return torch.tensor(shares, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_equals_a_loop(epsilon, iterations):
    torch.testing.assert_close(sinkhorn(scores(), epsilon, iterations), naive(scores(), epsilon, iterations))


def test_the_first_scaling_of_rows_does_not_change_the_limit():
    torch.testing.assert_close(sinkhorn(scores(), 0.2, 500), naive(scores(), 0.2, 500, rows_first=False))


def test_rows_sum_to_one_and_columns_come_near_equal_shares():
    gaps = []
    for iterations in (1, 3, 30, 1000):
        shares = sinkhorn(scores(), 0.1, iterations)
        torch.testing.assert_close(shares.sum(1), torch.ones(12).double(), atol=1e-15, rtol=0)
        gaps.append(float((shares.sum(0) - 4).abs().max()))
    assert gaps == sorted(gaps, reverse=True) and gaps[1] > 1e-3 and gaps[-1] < 1e-9


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_constant_added_to_a_sample_changes_nothing(iterations):
    moved = scores() + torch.linspace(-2, 2, 12).double()[:, None]
    torch.testing.assert_close(sinkhorn(moved, 0.05, iterations), sinkhorn(scores(), 0.05, iterations))


def test_equal_scores_and_a_large_epsilon_are_uniform():
    uniform = torch.full((12, 3), 1 / 3).double()
    torch.testing.assert_close(sinkhorn(torch.full((12, 3), 0.7).double(), 0.05, 3), uniform)
    torch.testing.assert_close(sinkhorn(scores(), 1e9, 3), uniform)


def test_a_small_epsilon_is_a_hard_balanced_assignment():
    shares = sinkhorn(scores(), 0.002, 5000)
    assert (shares.amax(1) > 0.99).all()
    assert shares.argmax(1).bincount().tolist() == [4, 4, 4]


def test_is_finite_in_float32_where_plain_exponentials_overflow():
    table = scores().float()
    shares = sinkhorn(table, 0.01, 3)
    assert (table / 0.01).exp().isinf().any() and shares.isfinite().all()
    torch.testing.assert_close(shares.sum(1), torch.ones(12))
    torch.testing.assert_close(shares.double(), sinkhorn(scores(), 0.01, 3), atol=1e-4, rtol=1e-4)


def test_bf16_is_computed_in_float32():
    assert sinkhorn(scores().bfloat16(), 0.05, 3).dtype == torch.float32
