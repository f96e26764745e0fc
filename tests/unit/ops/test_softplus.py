import pytest
import torch

from vlalign.ops.softplus import softplus


def exact(x: torch.Tensor) -> torch.Tensor:
    return torch.logaddexp(x.double(), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
def test_it_is_exact_to_the_last_digits_where_it_is_tiny_too(dtype, digits):
    x = torch.linspace(-80, 80, 4001, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(softplus(x).double(), exact(x), rtol=digits, atol=0)


def test_its_ends_are_finite_or_the_limit():
    x = torch.tensor([-1e4, 1e4, -torch.inf, torch.inf])
    assert softplus(x).tolist() == [0, 1e4, 0, torch.inf]
    assert softplus(torch.tensor(torch.nan)).isnan()


def test_its_gradients_are_right_by_finite_differences():
    x = torch.tensor([-30.0, -2.0, 0.0, 0.5, 20.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softplus, x)
    assert torch.autograd.gradgradcheck(softplus, x)
