import itertools

import pytest
import torch

from vlalign.evals.metrics.precision import ABSENT, precision, precisions
from vlalign.types import UserError


def brute(scores, right, k):
    """The share of right ones among the first k, mean over every order that ties allow."""
    kept = [(s, r) for s, r in zip(scores, right, strict=True) if s > ABSENT]
    groups = [[r for s, r in kept if s == value] for value in sorted({s for s, _ in kept}, reverse=True)]
    orders = itertools.product(*(itertools.permutations(group) for group in groups))
    shares = [sum(sum(order, ())[:k]) / min(k, len(kept)) for order in orders]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_mean_over_all_orders_of_ties(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 3, (5, 7), generator=generator).double()
    scores[2, :4] = ABSENT
    right = torch.rand(5, 7, generator=generator) < 0.4
    ks = (1, 2, 3, 5, 7, 50)
    found = precision(scores, right, ks)
    for query, at in itertools.product(range(5), range(len(ks))):
        wanted = brute(scores[query].tolist(), right[query].tolist(), ks[at])
        assert found[query, at].item() == pytest.approx(wanted, abs=1e-12)


def test_without_ties_against_sorting():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=1)
    classes = torch.randint(0, 4, (60,), generator=generator)
    order = (rows @ rows.T).fill_diagonal_(-2).argsort(1, descending=True)
    right = (classes[order] == classes[:, None]).double()
    for block in (1, 7, 512):
        found = precisions(rows, rows, classes, classes, (5, 10, 50), itself=False, block=block)
        for at, k in enumerate((5, 10, 50)):
            assert torch.equal(found[:, at], right[:, :k].sum(1) / k)


def test_all_right_is_one_and_none_is_zero():
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    assert (precision(scores, torch.ones(3, 20, dtype=torch.bool), (1, 5, 20)) == 1).all()
    assert (precision(scores, torch.zeros(3, 20, dtype=torch.bool), (1, 5, 20)) == 0).all()


def test_random_scores_get_the_share_of_the_class():
    generator = torch.Generator().manual_seed(2)
    right = (torch.arange(40) < 10).expand(4000, 40)
    found = precision(torch.randn(4000, 40, generator=generator), right, (5, 10)).mean(0)
    assert found.tolist() == pytest.approx([0.25, 0.25], abs=0.01)
    assert precision(torch.zeros(1, 40), right[:1], (5, 50)).tolist() == [[0.25, 0.25]]


def test_the_order_of_candidates_changes_nothing():
    generator = torch.Generator().manual_seed(3)
    distinct = torch.nn.functional.normalize(torch.randn(9, 16, generator=generator), dim=1)
    key = distinct.repeat(5, 1)  # five of each score
    classes = torch.randint(0, 3, (45,), generator=generator)
    shuffle = torch.randperm(45, generator=generator)
    asked = torch.arange(9) % 3
    one = precisions(distinct, key, asked, classes, (1, 3, 7))
    other = precisions(distinct, key[shuffle], asked, classes[shuffle], (1, 3, 7), block=4)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(UserError, match="1 of 1 queries have no candidate"):
        precisions(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1), torch.zeros(1), (5,), itself=False)
    with pytest.raises(UserError, match="1 of 2 queries .* no number"):
        precision(torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), torch.ones(2, 2, dtype=torch.bool), (1,))
