"""Cached gradients against direct ones, for every parameter."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from tests.unit.train.toy import RowTask, ToyModel, ToyTask, batch
from vlalign.train.step import Replay, cached, merge, separable
from vlalign.types import Embeddings


class OneProcess:
    """The machine of these tests; `boundaries` remembers which chunks were last."""

    device = torch.device("cpu")

    def __init__(self):
        self.boundaries = []

    def micro(self, model, last):
        self.boundaries.append(last)
        return nullcontext()

    def backward(self, loss):
        loss.backward()


def built(dropout: float) -> nn.Module:
    torch.manual_seed(0)
    return ToyModel(dropout).train()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in found.values()), "DDP would hang"
    return found


def close(left: dict, right: dict, tolerance: float = 1e-6) -> None:
    for name, grad in left.items():
        worst = (grad - right[name]).abs().max()
        assert worst <= tolerance * max(1.0, float(right[name].abs().max())), (name, worst)


def chunked(sizes: list[int], precision: torch.dtype = torch.float32) -> list:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    chunks = [batch(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    for chunk in chunks:
        chunk["query"]["pixels"] = chunk["query"]["pixels"].to(precision)
    return chunks


def direct(model: nn.Module, chunks: list, task: ToyTask, divisor: float) -> torch.Tensor:
    """The same forward, chunk by chunk in the same order of random numbers, kept whole in one graph."""
    features = Embeddings.cat([model(chunk) for chunk in chunks])
    loss = task.loss(features, merge(chunks), 1, 10)
    (loss.total / divisor + 0 * features.bias.sum()).backward()
    return loss.total.detach()


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("sizes", [[24], [12, 12], [6] * 4, [3] * 8, [7, 7, 7, 3]], ids=str)
def test_cached_gradients_equal_direct_ones(sizes, dropout, precision, tolerance):
    chunks, task, model, machine = (
        chunked(sizes, precision),
        ToyTask(),
        built(dropout).to(precision),
        OneProcess(),
    )
    torch.manual_seed(5)
    whole = direct(model, chunks, task, divisor=24)
    wanted = gradients(model)
    model.zero_grad()
    torch.manual_seed(5)
    loss = cached(machine, model, chunks, task, step=1, total=10, divisor=24)
    close(gradients(model), wanted, tolerance)
    torch.testing.assert_close(loss.total, whole)
    assert loss.parts["nce"] + 0.1 * loss.parts["pull"] == pytest.approx(float(whole), rel=1e-6)
    assert machine.boundaries == [False] * (len(sizes) - 1) + [True]


def test_random_numbers_after_the_step_do_not_depend_on_the_second_pass():
    model = built(0.4)
    torch.manual_seed(5)
    with torch.no_grad():
        for chunk in chunked([4, 4]):
            model(chunk)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    cached(OneProcess(), model, chunked([4, 4]), ToyTask(), step=1, total=1, divisor=8)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("sizes", [[24], [6] * 4, [10, 10, 4]], ids=str)
def test_separable_accumulates_the_exact_mean(sizes):
    """Uneven chunks: divided by the rows of the whole batch, not by chunks."""
    one, many = built(0.0), built(0.0)
    a = separable(OneProcess(), one, [batch(0, 24)], RowTask(), step=1, total=1, divisor=24)
    b = separable(OneProcess(), many, chunked(sizes), RowTask(), step=1, total=1, divisor=24)
    torch.testing.assert_close(a.total, b.total)
    close(gradients(many), gradients(one))


def test_a_bias_that_no_loss_reads_has_a_zero_gradient():
    for backward in (separable, cached):
        model = built(0.0)
        backward(OneProcess(), model, [batch(0, 4)], ToyTask(), step=1, total=1, divisor=4)
        assert torch.equal(model.bias.grad, torch.zeros(1))


def test_replay_gives_the_same_numbers_and_leaves_no_trace():
    torch.manual_seed(1)
    replay = Replay(torch.device("cpu"))
    first, second = torch.rand(4), torch.rand(4)
    torch.manual_seed(1)
    torch.rand(4)
    with replay.again():
        assert torch.equal(torch.rand(4), first)
    assert torch.equal(torch.rand(4), second)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_cached_gradients_equal_direct_ones_on_an_accelerator(precision):
    device = torch.device("cuda")

    class Machine(OneProcess):
        pass

    Machine.device = device

    def move(value):
        return (
            {k: move(v) for k, v in value.items()}
            if isinstance(value, dict)
            else value.to(device)
            if isinstance(value, torch.Tensor)
            else value
        )

    class OnDevice(ToyTask):
        def loss(self, features, batch, step, total):
            with torch.device(device):
                return super().loss(features, batch, step, total)

    chunks, task, model = [move(chunk) for chunk in chunked([8] * 3)], OnDevice(), built(0.4).to(device)
    with torch.autocast("cuda", precision, enabled=precision is torch.bfloat16):
        torch.manual_seed(5)
        direct(model, chunks, task, divisor=24)
        wanted = {name: grad.clone() for name, grad in gradients(model).items()}
        model.zero_grad()
        torch.manual_seed(5)
        cached(Machine(), model, chunks, task, step=1, total=1, divisor=24)
    close(gradients(model), wanted, 1e-5 if precision is torch.float32 else 2e-2)
