import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.supervision.mixers.list_mix import ListMix
from vlalign.types import Context

CONTEXT = Context({}, None, 0, 1)


def negatives(rows: int = 4, hardest: int = 5, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(rows, 1 + hardest, width, generator=generator, dtype=torch.float64)
    made = normalize(made, dim=-1)
    return made[:, 0], made[:, 1:]


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_equals_a_loop(temperature):
    query, hardest = negatives()
    found = ListMix(temperature=temperature)(query, hardest, CONTEXT)
    assert found.shape == (4, 1, 6)
    for row in range(4):
        shares = [math.exp(float(query[row] @ negative) / temperature) for negative in hardest[row]]
        raw = sum(share * negative for share, negative in zip(shares, hardest[row], strict=True))
        torch.testing.assert_close(found[row, 0], raw / raw.norm())


def test_all_attention_on_one_is_the_hardest():
    query, hardest = negatives()
    highest = torch.einsum("qd,qhd->qh", query, hardest).argmax(1)
    found = ListMix(temperature=1e-4)(query, hardest, CONTEXT)
    torch.testing.assert_close(found[:, 0], hardest[torch.arange(4), highest])


def test_unit_and_identical_negatives_give_themselves():
    query, hardest = negatives()
    found = ListMix()(query, hardest, CONTEXT)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, 1, dtype=torch.float64))
    same = hardest[:, :1]
    torch.testing.assert_close(ListMix()(query, same.expand(-1, 5, -1), CONTEXT), same)


def test_differentiable_and_bf16_is_tolerated():
    query, hardest = (x.requires_grad_() for x in negatives(2, 3, 3))
    assert torch.autograd.gradcheck(lambda q, x: ListMix(temperature=0.3)(q, x, CONTEXT), (query, hardest))
    small = ListMix()(query.bfloat16(), hardest.bfloat16(), CONTEXT)
    torch.testing.assert_close(small.double(), ListMix()(query, hardest, CONTEXT), atol=0.02, rtol=0)


def test_ranges():
    with pytest.raises(ValueError, match="hardest must be >= 1, got 0"):
        ListMix(hardest=0)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        ListMix(temperature=0)
