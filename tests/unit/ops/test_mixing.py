import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.unit.ops.worlds import Graded, Largest, assert_same, batch, embeddings, logits
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.ops.ask import Ask
from vlalign.ops.mixing import Mix, hardest, mixable
from vlalign.ops.reductions import NEGATIVES, Count, Expected, LogSumExp, Max, Sum
from vlalign.ops.table import Table
from vlalign.ops.tile import Grid, Lens
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings


def twice(rows: Tensor, found: Tensor) -> Tensor:
    """Two synthetic negatives a row: the mean of the shown ones, and one that leans to the row itself."""
    return normalize(torch.stack([found.mean(1), found[:, 0] + 0.3 * rows], 1), dim=-1)


def square(score: Tensor, target: Tensor, best: Tensor) -> Tensor:
    return (score - best).square()


ASKED = {
    "positive": Expected(),
    "all": LogSumExp(),
    "negatives": LogSumExp(over=NEGATIVES, temperature=0.3),
    "best": Max(over=NEGATIVES),
    "count": Count(over=NEGATIVES),
    "sum": Sum(square, given=("positive",), over=NEGATIVES),
}


def naive(features: Embeddings, side: str, shown: int, temperature: float = 0.3) -> dict[str, Tensor]:
    """Row by row: sort the negatives, mix, and put the two made ones among the row's scores."""
    own, other = (features.query, features.key) if side == "query" else (features.key, features.query)
    found: dict[str, list[Tensor]] = {name: [] for name in ASKED}
    for at, row in enumerate(own):
        cosines = other @ row
        order = sorted((j for j in range(len(other)) if j != at), key=lambda j: -cosines[j].item())[:shown]
        order += [order[0]] * (shown - len(order))
        made = twice(row[None], other[order][None])[0] @ row
        negatives = torch.cat([cosines[[j for j in range(len(other)) if j != at]], made])
        score, positive = (features.scale * x + features.bias for x in (negatives, cosines[at][None]))
        found["positive"].append(positive[0])
        found["all"].append(torch.cat([score, positive]).logsumexp(0))
        found["negatives"].append((negatives / temperature).logsumexp(0))
        found["best"].append(score.max())
        found["count"].append(torch.tensor(float(len(score)), dtype=score.dtype))
        found["sum"].append((score - positive).square().sum())
    return {name: torch.stack(each).reshape(-1) for name, each in found.items()}


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("shown", [1, 3, 9])
def test_joined_reductions_equal_a_loop(side, shown):
    features, data = embeddings(6, 6), batch(range(6), range(6))
    ask = Ask(reductions=ASKED, side=side, targets=Identity(), mix=Mix(shown, twice))
    [rows] = Table(features, data, (4, 2)).rows([ask])
    reference = naive(features, side, shown)
    for name in ASKED:
        torch.testing.assert_close(rows[name], reference[name], atol=1e-12, rtol=1e-12)
    weights = torch.linspace(0.3, 2.0, 6, dtype=torch.float64)
    mine, other = (sum((each[n] * weights).sum() for n in ASKED) for each in (rows, reference))
    assert_same(mine, other, features)


@pytest.mark.parametrize("side", ["query", "key"])
def test_the_hardest_are_those_of_a_sort(side):
    features = embeddings(7, 9)
    data = batch([0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 4, 6, 7, 8])
    table = Table(features, data, (3, 4))
    lens = Lens(side, Identity())
    grid = Grid(table._fields([lens], "key"), (3, 4))
    places, some = hardest(grid, table._operands, lens, 3)
    scores = logits(features, side)
    right = data["query_fields"]["row"][:, None] == data["key_fields"]["row"][None]
    scores = scores.masked_fill(right if side == "query" else right.T, -torch.inf)
    assert some.all() and torch.equal(places, scores.topk(3, 1).indices)


def test_a_row_without_negatives_stays_as_it_was():
    features, data = embeddings(2, 2), batch([0, 1], [0, 0])
    asks = [
        Ask(reductions={"all": LogSumExp()}, side="query", targets=Identity(), mix=mix)
        for mix in (None, Mix(2, twice))
    ]
    plain, mixed = (Table(features, data).rows([ask])[0]["all"] for ask in asks)
    assert mixed[0] == plain[0] and mixed[1] > plain[1]


def test_one_negative_stands_in_for_all_that_are_asked_for():
    features, data = embeddings(2, 2), batch([0, 1], [0, 1])
    seen = []
    mix = Mix(3, lambda rows, found: seen.append(found) or twice(rows, found))
    Table(features, data).rows(
        [Ask(reductions={"all": LogSumExp()}, side="query", targets=Identity(), mix=mix)]
    )
    assert torch.equal(seen[0], features.key[[1, 0]][:, None].expand(2, 3, -1))


def test_which_reductions_more_negatives_can_join():
    assert mixable(InfoNCE().reductions) and mixable(DCL().reductions) and mixable(ASKED)
    assert not mixable(InfoNCE(label_smoothing=0.1).reductions)  # a mean over all
    assert not mixable({}) and not mixable({"positive": Expected()})
    moved = {"best": Max(over=NEGATIVES), "sum": Sum(square, given=("best",), over=NEGATIVES)}
    assert not mixable(moved)  # real negatives were summed against another best


def test_no_table_is_made_whole():
    features, data = embeddings(64, 64), batch(range(64), range(64))
    with Largest() as seen:
        ask = Ask(reductions={"all": LogSumExp()}, side="key", targets=Graded(), mix=Mix(2, twice))
        Table(features, data, (8, 8)).rows([ask])[0]["all"].sum().backward()
    assert seen.numbers < 64 * 64 / 4
