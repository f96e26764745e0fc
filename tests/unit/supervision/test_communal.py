import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Largest, assert_same, batch, embeddings, logits, losses_of
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.communal import Communal
from vlalign.supervision.targets.identity import Identity


def members(rows: int, communities: int = 3, seed: int = 0) -> Tensor:
    """Each row's chances."""
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(rows, communities, generator=generator, dtype=torch.float64)).softmax(1)


def world(rows: int = 6) -> dict:
    data = batch(range(rows), range(rows))
    for side, seed in (("query_fields", 1), ("key_fields", 2)):
        data[side]["communities"] = members(rows, seed=seed)
    return data


def weights(data: dict, kappa: float, side: str) -> Tensor:
    """One pair at a time, rows of one side first."""
    query, key = (data[f"{each}_fields"]["communities"] for each in ("query", "key"))
    table = torch.ones(len(query), len(key), dtype=torch.float64)
    for i, r in enumerate(query):
        for j, s in enumerate(key):
            if i != j:
                table[i, j] = 1 - kappa * sum(a * b for a, b in zip(r, s, strict=True))
    return table if side == "query" else table.T


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("kappa", [0.3, 1.0])
def test_equals_a_loop(side, kappa):
    features, data = embeddings(6, 6), world()
    mine = losses_of(InfoNCE(), features, data, Identity(), side, (Communal(kappa=kappa),))
    scores = logits(features, side)
    denominator = (weights(data, kappa, side) * scores.exp()).sum(1).log()
    assert_same(mine.sum(), (denominator - scores.diagonal()).sum(), features)
    torch.testing.assert_close(mine, denominator - scores.diagonal())


@pytest.mark.parametrize("objective", [InfoNCE(), DCL()])
def test_kappa_zero_changes_nothing(objective):
    features, data = embeddings(6, 6), world()
    plain = losses_of(objective, features, data, Identity())
    weighed = losses_of(objective, features, data, Identity(), selectors=(Communal(kappa=0.0),))
    assert_same(weighed.sum(), plain.sum(), features)


def test_a_negative_of_the_same_community_does_not_count_and_one_of_another_counts_once():
    row = torch.eye(3)[[0, 1]][:, None]
    column = torch.eye(3)[[0, 1, 2]][None]
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    found = Communal().tile({"communities": row}, {"communities": column}, torch.zeros(2, 3), nobody)
    assert found.tolist() == [[0, 1, 1], [1, 0, 1]]
    found = Communal().tile({"communities": row}, {"communities": column}, torch.zeros(2, 3), ~nobody)
    assert found.eq(1).all()


def test_weights_are_from_zero_to_one_in_float32():
    row, column = members(40).float()[:, None], members(50, seed=1).float()[None]
    row[:5] = torch.tensor([1.0, 1e-8, 0.0])
    column[:, :5] = torch.tensor([1.0000001, 0.0, 0.0])
    empty = torch.zeros(40, 50, dtype=torch.bool)
    found = Communal().tile({"communities": row}, {"communities": column}, torch.zeros(40, 50), empty)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("flipped", [False, True])
def test_no_tensor_is_larger_than_a_tile(flipped):
    row, column = members(40, 8)[:, None], members(50, 8, seed=1)[None]
    row, column = (column, row) if flipped else (row, column)
    nobody = torch.zeros(40, 50, dtype=torch.bool)
    with Largest() as largest:
        Communal().tile({"communities": row}, {"communities": column}, torch.zeros(40, 50), nobody)
    assert largest.numbers == 40 * 50


def test_ranges():
    with pytest.raises(ValueError, match="kappa must be between 0 and 1, got 1.5"):
        Communal(kappa=1.5)
