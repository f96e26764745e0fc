import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.supervision.mixers.pair_mix import PairMix
from vlalign.types import Context


def context(step: int = 3) -> Context:
    return Context({}, None, step, 10)


def negatives(rows: int = 4, hardest: int = 5, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(rows, 1 + hardest, width, generator=generator, dtype=torch.float64)
    made = normalize(made, dim=-1)
    return made[:, 0], made[:, 1:]


@pytest.mark.parametrize("alpha", [1, 2])
@pytest.mark.parametrize("step", [3, 4])
def test_equals_a_loop(alpha, step):
    query, hardest = negatives()
    found = PairMix(hardest=5, alpha=alpha)(query, hardest, context(step))
    generator = context(step).generator()
    away = int(torch.randint(1, 5, (), generator=generator))
    uniform = torch.rand(5, 2 * alpha - 1, generator=generator, dtype=torch.float64)
    assert found.shape == (4, 5, 6)
    for row in range(4):
        for at in range(5):
            share = sorted(uniform[at].tolist())[alpha - 1]
            raw = share * hardest[row, at] + (1 - share) * hardest[row, (at - away) % 5]
            torch.testing.assert_close(found[row, at], raw / raw.norm())


def test_unit_and_never_of_a_negative_with_itself():
    query, hardest = negatives()
    for step in range(20):
        found = PairMix(hardest=5)(query, hardest, context(step))
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, 5, dtype=torch.float64))
        assert ((found - hardest).norm(dim=-1) > 1e-3).all()


def test_identical_negatives_give_themselves():
    query, hardest = negatives()
    same = hardest[:, :1].expand(-1, 5, -1)
    torch.testing.assert_close(PairMix()(query, same, context()), same)
    one = hardest[:, :1]
    torch.testing.assert_close(PairMix()(query, one, context()), one)


def test_a_row_does_not_depend_on_which_rows_come_with_it():
    query, hardest = negatives()
    whole = PairMix()(query, hardest, context())
    torch.testing.assert_close(PairMix()(query[2:], hardest[2:], context()), whole[2:])
    assert not torch.allclose(PairMix()(query, hardest, context(4)), whole)


def test_differentiable_and_bf16_is_tolerated():
    query, hardest = negatives(2, 3, 3)
    assert torch.autograd.gradcheck(lambda x: PairMix()(query, x, context()), hardest.requires_grad_())
    small = PairMix()(query.bfloat16(), hardest.bfloat16(), context())
    torch.testing.assert_close(small.double(), PairMix()(query, hardest, context()), atol=0.02, rtol=0)


@pytest.mark.parametrize(("field", "least"), [("hardest", 2), ("alpha", 1)])
def test_ranges(field, least):
    with pytest.raises(ValueError, match=f"{field} must be >= {least}, got 0"):
        PairMix(**{field: 0})
