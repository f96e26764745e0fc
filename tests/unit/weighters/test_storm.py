from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.unit.ops.worlds import batch, embeddings, gradients, logits, losses_of, rows_of
from tests.unit.weighters.ranks import Some
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.types import Context, Embeddings
from vlalign.weighters.storm import Storm

DATA = batch(range(6), range(6))


def head(seed: int = 0) -> nn.Module:
    """As if it had learnt."""
    torch.manual_seed(seed)
    module = Storm().head(4).double()
    for p in module.parameters():
        nn.init.normal_(p)
    return module


def world(module: nn.Module, objective=InfoNCE(), data=DATA) -> tuple[Embeddings, Tensor, Context]:
    features = replace(embeddings(6, 6), extras=dict(module.named_parameters()))
    rows = rows_of(objective, features, data, Identity())
    losses = losses_of(objective, features, data, Identity())
    return features, losses, Context(data, rows, 1, 9, features)


def naive(module: nn.Module, features: Embeddings, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Rates and weights, a row at a time."""
    margins, chances = [], []
    for at, row in enumerate(logits(features).detach()):
        others = torch.cat([row[:at], row[at + 1 :]])
        margins.append(row[at] - others.exp().sum().log())
        chances.append(row[at].exp() / row.exp().sum())
    chance = torch.stack(chances)
    loss, margin = (
        (x - x.mean()) / (x.std(correction=0) + 1e-6) for x in (losses.detach(), torch.stack(margins))
    )
    rates = torch.stack(
        [torch.sigmoid(module(torch.stack(each)))[0] for each in zip(loss, chance, margin, strict=True)]
    )
    return rates, rates / rates.mean()


@pytest.mark.parametrize("objective", [InfoNCE(), DCL()])
def test_equals_a_loop_whatever_the_objective(objective):
    module = head()
    features, losses, given = world(module, objective)
    rates, weights = naive(module, features, losses)
    torch.testing.assert_close(Storm().rates(losses, given), rates)
    torch.testing.assert_close(Storm()(losses, given), weights.detach())
    parameters = list(module.parameters())
    mine = torch.autograd.grad(Storm().rates(losses, given).square().sum(), parameters)
    for slope, other in zip(mine, torch.autograd.grad(rates.square().sum(), parameters), strict=True):
        torch.testing.assert_close(slope, other)


def test_gradcheck_of_the_rates_by_the_head():
    module = head()
    names, parameters = zip(*module.named_parameters(), strict=True)
    features, losses, given = world(module)

    def rates(*values: Tensor) -> Tensor:
        extras = dict(zip(names, values, strict=True))
        return Storm().rates(losses, replace(given, features=replace(features, extras=extras)))

    assert torch.autograd.gradcheck(rates, parameters, fast_mode=True)


def test_weights_are_not_negative_and_average_one_without_a_gradient():
    _, losses, given = world(head())
    weights = Storm()(losses, given)
    assert (weights >= 0).all() and not weights.requires_grad and weights.std() > 0.01
    assert float(weights.mean()) == pytest.approx(1)


def test_weights_move_with_their_rows():
    module, order = head(), torch.tensor([3, 0, 5, 1, 4, 2])
    _, losses, given = world(module)
    reordered = {name: given.rows[name][order] for name in given.rows}
    rows = Some(given.rows.valid[order], reductions=reordered)
    torch.testing.assert_close(
        Storm()(losses[order], replace(given, rows=rows)), Storm()(losses, given)[order]
    )


def test_only_valid_rows_count():
    data = batch([0, 1, 2, 3, 4, 90], range(6))
    _, losses, given = world(head(), data=data)
    weights = Storm()(losses, given)
    assert weights[5] == 0 and float(weights[:5].mean()) == pytest.approx(1)


def test_features_and_mean_are_of_every_rank():
    """What others have is given in the order in which it is asked for."""
    _, losses, given = world(head())
    margin = given.rows["positive"] - (given.rows["all"].exp() - given.rows["positive"].exp()).log()
    every = [x.detach() for x in (losses, margin, Storm().rates(losses, given))]
    part = slice(1, 4)
    rows = Some(given.rows.valid[part], every, {name: given.rows[name][part] for name in given.rows})
    torch.testing.assert_close(Storm()(losses[part], replace(given, rows=rows)), Storm()(losses, given)[part])


def test_a_head_that_has_not_learnt_gives_exactly_the_unweighted_gradient():
    features = embeddings(6, 6)
    plain = Align(targets=Identity(), terms=(Term(objective=InfoNCE()),))
    task = Align(targets=Identity(), terms=(Term(objective=InfoNCE(), weighters=(Storm(),)),))
    ((name, module),) = task.heads(4).items()
    extras = {f"{name}.{own}": p for own, p in module.double().named_parameters()}
    found = task.loss(replace(features, extras=extras), DATA, 1, 9).total
    wanted = plain.loss(features, DATA, 1, 9).total
    assert torch.equal(found, wanted)
    for mine, other in zip(gradients(found, features), gradients(wanted, features), strict=True):
        assert torch.equal(mine, other)


def test_to_simulate_is_to_weigh_by_one_and_to_have_rates():
    _, losses, given = world(head())
    assert torch.equal(Storm(simulate=True)(losses, given), torch.ones_like(losses))
    assert torch.equal(Storm(simulate=True).rates(losses, given), Storm().rates(losses, given))


@pytest.mark.parametrize("normalised", [False, True])
def test_unless_weights_average_one_to_weigh_nothing_is_best(normalised):
    """The loss of the weighted rows alone, descended by the head."""
    torch.manual_seed(0)
    module = Storm().head(4).double()
    _, losses, given = world(module)
    losses = losses.detach()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.2)
    for _ in range(40):
        rates = Storm().rates(losses, given)
        weights = rates / rates.mean() if normalised else rates
        optimizer.zero_grad()
        (weights * losses).mean().backward()
        optimizer.step()
    used = Storm()(losses, given) if normalised else weights.detach()
    assert float(used.mean()) == pytest.approx(1) if normalised else float(used.max()) < 0.02


def test_a_sure_row_has_finite_features():
    features = embeddings(6, 6, width=6)
    sides = torch.eye(6, dtype=torch.float64)
    module = head()
    features = replace(
        features,
        query=sides,
        key=sides,
        scale=torch.tensor([1e4]).double(),
        extras=dict(module.named_parameters()),
    )
    rows = rows_of(InfoNCE(), features, DATA, Identity())
    weights = Storm()(InfoNCE()(rows), Context(DATA, rows, 1, 9, features))
    torch.testing.assert_close(weights, torch.ones(6).double())


def test_bf16_losses_are_read_in_float32():
    _, losses, given = world(head())
    weights = Storm()(losses.bfloat16(), given)
    torch.testing.assert_close(weights, Storm()(losses, given), atol=0.05, rtol=0.05)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match=r"inner_lr must be > 0, got 0.0"):
        Storm(inner_lr=0.0)
    with pytest.raises(ValueError, match="cannot weigh the rows of sigmoid"):
        Term(objective=Sigmoid(), weighters=(Storm(),))
    features, losses, given = world(head())
    only = Some(given.rows.valid, reductions={"positive": given.rows["positive"]})
    with pytest.raises(ValueError, match="'all' or 'negatives'; the objective names positive"):
        Storm()(losses, replace(given, rows=only))
    with pytest.raises(ValueError, match="finds its head with the embeddings"):
        Storm()(losses, replace(given, features=None))
