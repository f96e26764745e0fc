import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.objectives.embedding.learned import assert_alike, checked, context, in_bf16, slopes, with_head
from vlalign.objectives.embedding.communal import Communal
from vlalign.types import Context, Embeddings

OBJECTIVE = Communal(communities=3, neighbours=2, inter=0.5, gamma=0.7)
ROWS = 9


def at(step: int = 0, features: Tensor | None = None, keys: int = ROWS) -> Context:
    """A step of 100 whose keys have frozen features."""
    random = torch.randn(keys, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return context(step, 100, key_fields={"text_features": random if features is None else features})


def adjacency(rows: Tensor, count: int) -> list[list[int]]:
    """1 where one is among the nearest of the other."""
    table = [[0] * len(rows) for _ in rows]
    for i, row in enumerate(rows):
        cosines = {j: float(row @ x / (row.norm() * x.norm())) for j, x in enumerate(rows) if j != i}
        for j in sorted(cosines, key=cosines.__getitem__)[::-1][:count]:
            table[i][j] = table[j][i] = 1
    return table


def memberships(rows: Tensor, objective: Communal, features: Embeddings) -> list[Tensor]:
    table = []
    for row in rows.detach():
        scores = torch.stack([row @ c / c.norm() / objective.temperature for c in features.extras["weight"]])
        table.append(scores.exp() / scores.exp().sum())
    return table


def deca(members: list[Tensor], joined: list[list[int]], inter: float) -> Tensor:
    """One pair of communities and one pair of rows at a time."""
    rows, total = len(members), 0
    for k in range(len(members[0])):
        for other in range(len(members[0])):
            edges = sum(
                joined[i][j] * members[i][k] * members[j][other] for i in range(rows) for j in range(rows)
            )
            if k != other:
                total = total + inter * edges / (rows * (rows - 1))
            else:
                total = total - (edges - sum(r[k] ** 2 for r in members) / 2) / rows
    return total


def contrast(rows: Tensor, others: Tensor, members: list[Tensor], objective: Communal) -> Tensor:
    """One row and one community at a time."""
    own = [int(r.argmax()) for r in members]
    means = {k: others[torch.tensor([o == k for o in own])].detach().mean(0) for k in set(own)}
    gaps = {(k, m): float((means[k] - means[m]).square().sum()) for k in means for m in means if k != m}
    average = sum(gaps.values()) / len(gaps) if gaps else 1.0
    losses = []
    for row, k in zip(rows, own, strict=True):
        near = {m: (row @ mean / objective.temperature).exp() for m, mean in means.items()}
        far = [math.exp(-objective.gamma * gaps[k, m] / average) * near[m] for m in means if m != k]
        losses.append(-(near[k] / (near[k] + sum(far))).log())
    return torch.stack(losses)


def naive(
    features: Embeddings, now: Context, objective: Communal, alpha: float = 1, rho: float = 0.5
) -> Tensor:
    query, key = features.query, features.key[: len(features.query)]
    joined = adjacency(now.batch["key_fields"]["text_features"][: len(query)], objective.neighbours)
    of_query, of_key = (memberships(side, objective, features) for side in (query, key))
    density = sum(deca(members, joined, objective.inter) for members in (of_query, of_key)) / 2
    there, back = contrast(query, key, of_key, objective), contrast(key, query, of_query, objective)
    return alpha * (rho * density + (1 - rho) * (there + back) / 2)


def contrasts(objective: Communal, features: Embeddings, now: Context) -> Tensor:
    """The contrast alone: both losses, less DeCA, which is all that the paper's schedule begins with."""
    alone = replace(objective, schedule="paper")(features, replace(now, step=0))
    return 2 * replace(objective, schedule="constant")(features, now) - alone


@pytest.mark.parametrize("keys", [ROWS, 12])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_loop(keys, seed):
    features, now = with_head(OBJECTIVE, ROWS, keys=keys, seed=seed), at(keys=keys)
    assert_alike(OBJECTIVE(features, now), naive(features, now, OBJECTIVE), features)


@pytest.mark.parametrize(("step", "alpha"), [(0, 1.0), (5, 0.75), (20, 0.0), (60, 0.0)])
def test_the_papers_schedule(step, alpha):
    objective = replace(OBJECTIVE, schedule="paper")
    features, now = with_head(objective, ROWS), at(step)
    reference = naive(features, now, objective, alpha, math.exp(-step / 100))
    assert_alike(objective(features, now), reference, features)


def test_gradcheck_by_the_centres():
    assert checked(OBJECTIVE, with_head(OBJECTIVE, ROWS), at(), ("extras.weight",))


def test_rows_learn_nothing_from_their_memberships():
    features = with_head(OBJECTIVE, ROWS)
    deca_alone = replace(OBJECTIVE, schedule="paper")(features, at())
    gradients = slopes(deca_alone.sum(), features)
    assert gradients["query"].eq(0).all() and gradients["key"].eq(0).all()
    assert gradients["extras.weight"].abs().max() > 0


def test_the_contrast_teaches_rows_and_no_centre():
    features = with_head(OBJECTIVE, ROWS)
    gradients = slopes(contrasts(OBJECTIVE, features, at()).sum(), features)
    assert gradients["extras.weight"].abs().max() < 1e-12
    assert gradients["query"].abs().max() > 0 and gradients["key"].abs().max() > 0


def test_one_community_has_nothing_to_contrast():
    objective = replace(OBJECTIVE, communities=1)
    assert contrasts(objective, with_head(objective, ROWS), at()).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_communities_without_rows_are_left_out(gamma):
    objective = replace(OBJECTIVE, communities=5, gamma=gamma)
    features = with_head(objective, ROWS)
    with torch.no_grad():  # all rows in one
        features.extras["weight"][1:] = -features.extras["weight"][:1]
        features.query.copy_(torch.nn.functional.normalize(features.extras["weight"][:1], dim=1))
        features.key.copy_(features.query)
    loss = contrasts(objective, features, at())
    assert loss.abs().max() < 1e-12
    assert all(x.isfinite().all() for x in slopes(objective(features, at()).sum(), features).values())


def test_gamma_zero_is_a_plain_softmax_over_means():
    objective = replace(OBJECTIVE, gamma=0.0)
    features, now = with_head(objective, ROWS), at()
    reference = 0
    for rows, others in ((features.query, features.key), (features.key, features.query)):
        own = torch.stack(memberships(others, objective, features)).argmax(1)
        means = torch.stack([others[own == k].mean(0) for k in own.unique()])
        scores = rows @ means.T / objective.temperature
        labels = torch.searchsorted(own.unique(), own)
        reference = reference + torch.nn.functional.cross_entropy(scores, labels, reduction="none") / 2
    torch.testing.assert_close(contrasts(objective, features, now), reference)


def test_gamma_is_on_the_scale_of_measured_distances():
    """At one and the same gamma, communities that are all far away or all close count alike."""
    objective = replace(OBJECTIVE, temperature=0.05)
    features = with_head(objective, ROWS)
    assert len(torch.stack(memberships(features.key, objective, features)).argmax(1).unique()) == 3
    shrunk = replace(features, query=features.query / 10, key=features.key / 10)
    warm = replace(objective, temperature=0.05 / 10 / 10)
    torch.testing.assert_close(contrasts(objective, features, at()), contrasts(warm, shrunk, at()))


def test_deca_is_lowest_for_the_true_blocks():
    """Three blocks of three, and rows that are hard members of them, or of as large shuffled ones."""
    objective = replace(OBJECTIVE, temperature=0.01, schedule="paper", inter=1.0)
    truth = torch.arange(3).repeat_interleave(3)
    centres, blocks = torch.eye(4, dtype=torch.float64)[:3], torch.eye(3, dtype=torch.float64)[truth]
    noise = torch.randn(ROWS, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    now = at(features=blocks + 0.01 * noise)

    def loss(members: Tensor) -> float:
        rows = centres[members]
        features = replace(with_head(objective, ROWS), query=rows, key=rows, extras={"weight": centres})
        return float(objective(features, now)[0])

    generator = torch.Generator().manual_seed(1)
    shuffled = [truth[torch.randperm(ROWS, generator=generator)] for _ in range(20)]
    assert loss(truth[[3, 4, 5, 6, 7, 8, 0, 1, 2]]) == pytest.approx(loss(truth))  # by another name
    assert all(loss(truth) < loss(members) for members in shuffled)


def test_permuting_rows_permutes_losses():
    features, now, order = with_head(OBJECTIVE, ROWS), at(), torch.randperm(ROWS)
    moved = replace(features, query=features.query[order], key=features.key[order])
    loss = OBJECTIVE(moved, at(features=now.batch["key_fields"]["text_features"][order]))
    torch.testing.assert_close(loss, OBJECTIVE(features, now)[order])


def test_the_field_that_it_makes_holds_the_memberships_of_every_row():
    features = with_head(OBJECTIVE, ROWS, keys=12)
    fields = OBJECTIVE.make(features)
    for side, rows in (("query", features.query), ("key", features.key)):
        members = fields[side]["communities"]
        assert list(fields[side]) == list(OBJECTIVE.makes) and not members.requires_grad
        torch.testing.assert_close(members, torch.stack(memberships(rows, OBJECTIVE, features)).detach())
    assert OBJECTIVE.fields == ("text_features",)


def test_bf16():
    objective = replace(OBJECTIVE, temperature=0.4)
    features = with_head(objective, ROWS, width=8, seed=2)
    loss = objective(in_bf16(features), at())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), objective(features, at()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["communities", "neighbours", "inter", "gamma", "temperature"])
def test_ranges(name):
    with pytest.raises(ValueError, match=f"{name} must be >=? [01], got -1"):
        Communal(**{name: -1})
