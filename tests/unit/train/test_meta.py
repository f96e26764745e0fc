"""The gradient of a tried step against the whole of it, differentiated by autograd and by differences."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from vlalign.ops.weighing import Weighing
from vlalign.train import meta
from vlalign.train.meta import Collected, check, is_outer, moved, teach
from vlalign.train.step import cached, separable
from vlalign.types import Embeddings, RecipeError

ETA, WIDTH = 0.3, 5


class OneProcess:
    device = torch.device("cpu")

    def sum(self, values: Tensor) -> Tensor:
        return values


class Lines(nn.Module):
    """Three outputs of a linear model, and a head that leaves through extras."""

    def __init__(self, head: nn.Module, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.line, self.dropout, self.head = nn.Linear(width, 3), nn.Dropout(dropout), head
        self.scale, self.bias = nn.Parameter(torch.ones(1)), nn.Parameter(torch.zeros(1))
        self.locked = nn.Parameter(torch.ones(3), requires_grad=False)
        self.double()

    def forward(self, batch) -> Embeddings:
        query = self.dropout(self.line(batch["query"]["x"])) * self.locked
        extras = {f"own.{name}": p.clone() for name, p in self.head.named_parameters()}
        return Embeddings(query, batch["key"]["y"], self.scale.exp(), self.bias, extras)


def learnt(model: Lines) -> dict[str, nn.Parameter]:
    return {f"own.{name}": p for name, p in model.head.named_parameters()}


class Logistic(nn.Module):
    """A rate from a loss and a feature that the model knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.slope, self.offset = nn.Parameter(torch.tensor([0.7, -0.4])), nn.Parameter(torch.tensor([0.2]))


class Each(nn.Module):
    """A rate for each row of the data."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.linspace(0.5, 1.5, rows))


class Regression:
    """Squares in one direction and logistic losses in the other; each row meets the mean of all."""

    coupled = True
    invalid = ()  # rows

    def losses(self, features: Embeddings) -> list[Tensor]:
        gap = (features.query - features.query.mean(0) / 4) * features.scale - features.key
        return [gap.square().sum(1), nn.functional.softplus(gap.sum(1) + features.bias)]

    def rates(self, features: Embeddings, losses: Tensor, batch) -> Tensor:
        row, own = batch["query_fields"]["row"], features.extras
        if "own.rate" in own:
            return own["own.rate"][row]
        seen = torch.stack([losses.detach(), torch.sin(row.double())], 1)
        return (seen @ own["own.slope"] + own["own.offset"]).sigmoid()

    def weighings(self, features, batch, step, total) -> list[Weighing]:
        row = batch["query_fields"]["row"]
        valid = ~torch.isin(row, torch.tensor(self.invalid, dtype=torch.int64))
        return [
            Weighing(losses.where(valid, 0), self.rates(features, losses, batch), valid, row)
            for losses in self.losses(features)
        ]


def batch(start: int, stop: int, width: int = WIDTH, order=None) -> dict:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, width, generator=generator, dtype=torch.float64)
    y = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    row = torch.arange(start, stop) if order is None else torch.tensor(order)
    fields = {"row": row}
    return {"query": {"x": x[row]}, "key": {"y": y[row]}, "query_fields": fields, "key_fields": fields,
            "ids": [str(each) for each in row.tolist()]}  # fmt: skip


def built(head: nn.Module | None = None, **fields) -> Lines:
    torch.manual_seed(0)
    return Lines(Logistic() if head is None else head, **fields)


def taught(
    model: Lines, chunks, task=None, backward=separable, step: int = 5, inner_lr: float = ETA
) -> list[Tensor]:
    teach(
        OneProcess(), model, learnt(model), chunks, (task or Regression()).weighings, backward,
        inner_lr=inner_lr, step=step, total=9,
    )  # fmt: skip
    return [p.grad.clone() for p in model.head.parameters()]


def judged(model: Lines, data, task: Regression, step: int = 5) -> Tensor:
    """The outer loss after the inner step, differentiable by the head through all of it."""
    row = data["query_fields"]["row"]
    outer, valid = is_outer(row, step), ~torch.isin(row, torch.tensor(task.invalid, dtype=torch.int64))
    features = model(data)
    every = task.losses(features)
    weights = [task.rates(features, losses, data) for losses in every]

    def mean(losses: list[Tensor], half: Tensor) -> Tensor:
        parts = [
            (w * own)[half & valid].sum() / w[half & valid].sum()
            for w, own in zip(weights, losses, strict=True)
        ]
        return torch.stack(parts).mean()

    named = {name: p for name, p in model.named_parameters() if p.requires_grad and "head" not in name}
    slopes = torch.autograd.grad(
        mean(every, ~outer), list(named.values()), create_graph=True, materialize_grads=True
    )
    tried = {name: p - ETA * slope for (name, p), slope in zip(named.items(), slopes, strict=True)}
    return mean(task.losses(torch.func.functional_call(model, tried, (data,))), outer)


@pytest.fixture
def short(monkeypatch):
    """The difference has an error of the square of its reach; float64 lets it be shorter."""
    monkeypatch.setattr(meta, "REACH", 1e-4)


def assert_close(found: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-7) -> None:
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("backward", [separable, cached])
@pytest.mark.parametrize("head", [Logistic, lambda: Each(64)], ids=["logistic", "each"])
def test_equals_the_gradient_through_the_whole_step(head, backward, short):
    model, data = built(head()), batch(0, 24)
    found = taught(model, [data], backward=backward)
    wanted = torch.autograd.grad(judged(model, data, Regression()), list(model.head.parameters()))
    assert all(slope.abs().max() > 1e-3 for slope in wanted)
    assert_close(found, list(wanted))


def test_as_it_is_the_difference_costs_four_digits_at_most():
    model, data = built(Each(64)), batch(0, 24)
    (found,) = taught(model, [data])
    (wanted,) = torch.autograd.grad(judged(model, data, Regression()), [model.head.rate])
    assert 1e-8 < float((found - wanted).norm() / wanted.norm()) < 1e-3


def test_float32_has_the_difference_too():
    model, data = built(Each(64)), batch(0, 24)
    (wanted,) = taught(model, [data])
    model.float()
    for side, name in (("query", "x"), ("key", "y")):
        data[side][name] = data[side][name].float()
    (found,) = taught(model, [data])
    assert found.dtype == torch.float32 and float((found - wanted).norm() / wanted.norm()) < 1e-3


def test_equals_finite_differences_on_a_line_of_one_parameter(short):
    model, data = built(width=1), batch(0, 16, width=1)
    model.line.bias.requires_grad_(False)
    found = torch.cat(taught(model, [data]))
    wanted, reach = [], 1e-5
    for p in model.head.parameters():
        for at in range(len(p)):
            ends = []
            for sign in (1, -1):
                with torch.no_grad():
                    p[at] += sign * reach
                ends.append(judged(model, data, Regression()).item())
                with torch.no_grad():
                    p[at] -= sign * reach
            wanted.append((ends[0] - ends[1]) / (2 * reach))
    torch.testing.assert_close(found, torch.tensor(wanted).double(), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("sizes", [[12, 12], [7, 7, 7, 3]], ids=str)
def test_chunks_change_nothing(sizes):
    starts = [sum(sizes[:at]) for at in range(len(sizes))]
    chunks = [batch(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    assert_close(taught(built(), chunks, backward=cached), taught(built(), [batch(0, 24)]), 1e-10)


def test_a_step_moves_by_the_gradient_of_a_row_less_the_mean():
    """d theta' / d w_i = -eta g_i / B; that weights average one takes away the mean of all g."""

    class Squares(Regression):
        def losses(self, features):
            return [(features.query.sum(1) - features.key[:, 0]).square()]

    head = Each(64)
    nn.init.ones_(head.rate)
    model, data, task = built(head, width=1), batch(0, 20, width=1), Squares()
    model.line.bias.requires_grad_(False)
    (found,) = taught(model, [data], task)
    inner = ~is_outer(data["query_fields"]["row"], 5)
    weight = model.line.weight
    rows = torch.stack(
        [torch.autograd.grad(own, weight, retain_graph=True)[0] for own in task.losses(model(data))[0][inner]]
    ).squeeze(-1)
    with torch.no_grad():
        weight -= ETA * rows.mean(0)[:, None]
    slope = torch.autograd.grad(task.losses(model(data))[0][~inner].mean(), weight)[0].squeeze(-1)
    wanted = -ETA / int(inner.sum()) * (rows - rows.mean(0)) @ slope
    torch.testing.assert_close(found[:20][inner], wanted, atol=1e-8, rtol=1e-8)
    losses = task.losses(model(data))[0][~inner].detach()
    torch.testing.assert_close(found[:20][~inner], (losses - losses.mean()) / len(losses))
    assert (found[20:] == 0).all()


def test_all_else_is_as_it_was_to_the_bit():
    model = built(dropout=0.4)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    gradients = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.grad = gradients[name] = torch.randn_like(p)
    held = {name: (p.grad, p.grad.clone()) for name, p in model.named_parameters() if p.requires_grad}
    torch.manual_seed(8)
    wanted = torch.rand(3)
    torch.manual_seed(8)
    taught(model, [batch(0, 6), batch(6, 12)], backward=cached)
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    for name, (grad, copy) in held.items():
        p = dict(model.named_parameters())[name]
        assert p.grad is grad and torch.equal(grad, copy) == ("head" not in name), name


def test_dropout_falls_the_same_way_in_every_pass(short):
    """Against the whole step, its passes all from the same random state."""
    model, data = built(dropout=0.4), batch(0, 24)
    torch.manual_seed(2)
    found = taught(model, [data])
    forward = model.forward

    def again(given):
        torch.manual_seed(2)
        return forward(given)

    model.forward = again
    assert_close(
        found, list(torch.autograd.grad(judged(model, data, Regression()), list(model.head.parameters())))
    )


def test_the_same_weights_batch_and_step_give_the_same_gradient_to_the_bit():
    found = []
    for step in (5, 5, 6):
        model = built(dropout=0.4)
        torch.manual_seed(4)
        found.append(taught(model, [batch(0, 12), batch(12, 24)], backward=cached, step=step))
    for first, second, other in zip(*found, strict=True):
        assert torch.equal(first, second) and not torch.allclose(first, other)


def test_the_order_of_rows_does_not_matter():
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1)).tolist()
    for head in (Logistic, lambda: Each(64)):
        found = taught(built(head()), [batch(0, 24, order=order)])
        assert_close(found, taught(built(head()), [batch(0, 24)]), 1e-10)


def test_rows_that_are_not_valid_do_not_count(short):
    class Some(Regression):
        invalid = (2, 3, 7, 20)

    model, data = built(Each(64)), batch(0, 24)
    (found,) = taught(model, [data], Some())
    (wanted,) = torch.autograd.grad(judged(model, data, Some()), [model.head.rate])
    assert_close([found], [wanted])
    assert (found[list(Some.invalid)] == 0).all()


def test_equal_rates_are_as_good_at_any_height():
    """Weights are divided by their mean, so that the gradient by a common factor is 0."""
    model = built(Each(64))
    (found,) = taught(model, [batch(0, 24)])
    assert abs((found @ model.head.rate).item()) < 1e-12


@pytest.mark.parametrize("rows", [1, 2])
def test_a_half_without_rows_is_no_mistake(rows):
    for step in range(4):
        assert all(slope.isfinite().all() for slope in taught(built(), [batch(0, rows)], step=step))


def test_halves_change_with_the_step_and_not_with_their_place():
    row = torch.arange(10_000)
    halves = torch.stack([is_outer(row, step) for step in range(1, 41)])
    share = halves.double().mean(1)
    assert (share - 0.5).abs().max() < 0.03
    assert (halves.double().mean(0) - 0.5).abs().max() < 0.5, "a row is always in the same half"
    assert float((halves[0] == halves[1]).double().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(is_outer(row[500:], 7), is_outer(row, 7)[500:])


def test_a_weighter_learns_which_rows_are_wrong():
    """A quarter of the rows has noise for its target, and their rates fall below all others'."""

    class Noisy(Regression):
        def losses(self, features):
            return [(features.query - features.key).square().sum(1)]

    model, data = built(Each(64)), batch(0, 64)
    nn.init.ones_(model.head.rate)
    with torch.no_grad():
        truth = nn.Linear(WIDTH, 3).double()(data["query"]["x"])
        data["key"]["y"] = torch.cat([truth[:48], 3 * data["key"]["y"][48:]])
    optimizer = torch.optim.Adam([{"params": model.line.parameters(), "lr": 0.02},
                                  {"params": model.head.parameters(), "lr": 0.02}])  # fmt: skip
    task = Noisy()
    for step in range(80):
        optimizer.zero_grad()
        weighing = task.weighings(model(data), data, step, 80)[0]
        ((weighing.rates / weighing.rates.mean()).detach() * weighing.losses).mean().backward()
        taught(model, [data], task, step=step, inner_lr=0.05)
        optimizer.step()
        with torch.no_grad():
            model.head.rate.clamp_(min=1e-3)
    rates = model.head.rate.detach()
    assert float(rates[48:].median()) < 0.3 < 0.8 < float(rates[:48].median())


def test_an_error_leaves_the_weights_where_they_were():
    p = nn.Parameter(torch.randn(4))
    before = p.detach().clone()

    @contextmanager
    def broken() -> Iterator[None]:
        with moved([p], torch.ones(4)):
            assert not torch.equal(p, before)
            yield

    with pytest.raises(RuntimeError, match="on the way"), broken():
        raise RuntimeError("on the way")
    assert torch.equal(p, before)


def test_gradients_of_chunks_add_up_beside_grad():
    p, other = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.ones(2))
    collected = Collected(torch.device("cpu"), [p, other])
    for factor in (1.0, 3.0):
        with collected.micro(nn.Identity(), False):
            collected.backward((factor * p).sum())
    assert collected.gradient.tolist() == [4, 0, 0] and p.grad is None


def test_what_cannot_be_had_is_refused():
    check(deepspeed=False, precision="fp32")
    with pytest.raises(RecipeError, match=r"DeepSpeed does not let it; use recipes/launch/ddp.yaml"):
        check(deepspeed=True, precision="fp32")
    with pytest.raises(RecipeError, match="too small for bf16; use precision=fp32"):
        check(deepspeed=False, precision="bf16")
