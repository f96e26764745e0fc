"""Averaged weights against a naive loop."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlalign.train.ema import Average, with_momentum


def test_average_of_each_step():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = Average(model, decay=0.6)
    wanted = [float(x) for x in model.weight.detach().flatten()]
    for step in range(1, 20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        live = [float(x) for x in model.weight.detach().flatten()]
        wanted = [decay * old + (1 - decay) * new for old, new in zip(wanted, live, strict=True)]
    assert [float(x) for x in average.shadow["weight"].flatten()] == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert list(average.shadow) == ["weight"]


def test_applied_comes_and_goes_to_the_bit():
    model = nn.Linear(3, 2)
    average = Average(model, decay=0.9)
    with torch.no_grad():
        model.weight.mul_(2)
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError), average.applied():
        assert torch.equal(model.weight, average.shadow["weight"])
        raise RuntimeError
    assert torch.equal(model.weight, own)


def test_loads_what_it_held():
    one, two = Average(nn.Linear(3, 2), 0.9), Average(nn.Linear(3, 2), 0.9)
    two.load(one.shadow)
    assert all(torch.equal(two.shadow[name], tensor) for name, tensor in one.shadow.items())


def test_averaged_weights_see_what_is_there_for_a_teacher():
    def model(chunk):
        return SimpleNamespace(query=live.weight @ chunk["query"], key=chunk["key"])

    live = nn.Linear(3, 2)
    average = Average(live, decay=0.9)
    with torch.no_grad():
        live.weight.mul_(2)
    chunks = [{"query": torch.ones(3), "key": torch.zeros(1)}]
    chunks.append({**chunks[0], "teacher": torch.arange(3.0)})
    one, two = with_momentum(average, model, chunks)
    assert torch.equal(one["momentum"]["query"], average.shadow["weight"] @ torch.ones(3))
    assert torch.equal(two["momentum"]["query"], average.shadow["weight"] @ torch.arange(3.0))
    assert torch.equal(two["query"], torch.ones(3)) and not two["momentum"]["query"].requires_grad
