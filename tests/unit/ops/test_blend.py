import pytest
import torch
from torch.nn.functional import normalize

from vlalign.ops.blend import beta, blend


def rows(seed: int, count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, 4, generator=generator, dtype=torch.float64), dim=-1)


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 2), (2, 8), (5, 5)])
def test_draws_have_the_moments_of_beta(a, b):
    drawn = beta((100, 400), a, b, torch.Generator().manual_seed(0))
    assert drawn.shape == (100, 400) and drawn.dtype is torch.float64
    assert abs(drawn.mean() - a / (a + b)) < 0.005
    assert abs(drawn.var() / (a * b / (a + b) ** 2 / (a + b + 1)) - 1) < 0.03
    assert torch.equal(drawn, beta((100, 400), a, b, torch.Generator().manual_seed(0)))


def test_equals_a_loop_and_is_unit():
    one, other, share = rows(0), rows(1), torch.rand(6, dtype=torch.float64)
    found = blend(one, other, share)
    for at in range(6):
        raw = share[at] * one[at] + (1 - share[at]) * other[at]
        torch.testing.assert_close(found[at], raw / raw.square().sum().sqrt())
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6, dtype=torch.float64))


def test_a_share_of_one_or_none_is_an_original_and_equals_give_themselves():
    one, other, all_ = rows(0), rows(1), torch.ones(6)
    torch.testing.assert_close(blend(one, other, all_), one)
    torch.testing.assert_close(blend(one, other, 0 * all_), other)
    torch.testing.assert_close(blend(one, one, 0.3 * all_), one)


def test_differentiable_and_in_the_dtype_of_the_rows():
    one, other = rows(0).requires_grad_(), rows(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: blend(x, y, torch.full((6,), 0.3)), (one, other))
    assert blend(one.bfloat16(), other.bfloat16(), torch.rand(6)).dtype is torch.bfloat16
