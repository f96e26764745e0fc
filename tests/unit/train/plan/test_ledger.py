"""What a ledger counts, against sums done by hand."""

import pytest
import torch
from torch import nn

from vlalign.train.plan.blueprint import Blueprint
from vlalign.train.plan.ledger import Ledger, pretended

N = 128  # N x N elements are too large to be real


def test_a_storage_counts_once_while_it_lives():
    with Ledger() as ledger:
        ledger.charge(x := torch.zeros(N, N), "inputs")
        with ledger.charging("activations"):
            y = x + 1
            view = y.T[3:]
        del y
        assert dict(ledger.now) == {"temporary": 0, "inputs": 4 * N * N, "activations": 4 * N * N}
        del view
        z = x.double()
    assert ledger.now.total() == 3 * 4 * N * N
    assert ledger.peak.total() == 3 * 4 * N * N and ledger.most["activations"] == 4 * N * N
    assert z.shape == (N, N)


def test_only_the_share_that_a_process_holds_counts():
    with Ledger(held={"weights": 0.25}) as ledger:
        ledger.charge(x := torch.zeros(N, N), "weights")
        ledger.charge(x, "temporary")
        ledger.charge(x, "weights")
    assert ledger.now["weights"] == N * N and ledger.now["temporary"] == 0


def test_a_step_begins_with_what_lives():
    with Ledger() as ledger:
        x = torch.zeros(N, N)
        x + 1
        ledger.forget()
    assert ledger.peak.total() == 4 * N * N


@pytest.mark.parametrize("attention", [False, True])
def test_flops_of_products_are_counted_forward_and_backward(attention):
    with Ledger() as ledger:
        q, k, v = (torch.zeros(2, 4, N, 32, requires_grad=True) for _ in range(3))
        if attention:
            nn.functional.scaled_dot_product_attention(q, k, v).sum().backward()
        else:
            (q @ k.mT).sum().backward()
    product = 2 * 2 * 4 * N * N * 32
    assert ledger.flops == product * (7 if attention else 3)


def test_small_tensors_are_real_and_others_give_a_value_all_the_same():
    with Ledger():
        assert torch.tensor([3, 5]).tolist() == [3, 5]
        assert torch.stack([torch.tensor(2.0), torch.tensor(3.0)]).sum().item() == 5
        large = torch.zeros(N, N)
        assert large.sum().item() == 1 and (large > 3).any()
        assert large[large > 3].shape == (N * N,)
        assert large.index_put((large[0] > 3,), large[0]).shape == (N, N)
        assert [torch.unique(large, dim=dim).shape for dim in (0, 1)] == [(N, N)] * 2
        places = large.flatten().long()
        assert torch.bincount(places, minlength=9).dtype is torch.int64
        assert torch.bincount(places, large.double().flatten(), 9).shape == (9,)


def test_a_blueprint_has_shapes_and_small_values_but_no_memory():
    with Blueprint():
        layer, few = nn.Linear(100_000, 100_000), torch.linspace(0, 1, 5)
        layer.to("cpu")
        assert layer.weight.is_meta and few.tolist()[-1] == 1


def test_what_is_pretended_keeps_shapes_and_types():
    ledger = Ledger()
    made = pretended({"a": [torch.ones(2, 3, dtype=torch.int64)], "b": "word"}, ledger, "inputs")
    assert made["a"][0].shape == (2, 3) and made["a"][0].dtype is torch.int64 and made["b"] == "word"
    assert ledger.now == {"inputs": 48}
