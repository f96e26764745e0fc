from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.ops.worlds import assert_same, batch, embeddings, gradients, leaves
from vlalign.ops import table as table_module
from vlalign.ops.ask import Ask
from vlalign.ops.dist import Shares
from vlalign.ops.reductions import NEGATIVES, POSITIVES, Count, Expected, LogSumExp, Max, Sum
from vlalign.ops.table import Table
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings, UserError

CONTRAST = {"positive": Expected(), "all": LogSumExp()}


def exp_gap(score: Tensor, target: Tensor, positive: Tensor) -> Tensor:
    return (score - positive).exp()


def rows_of(features: Embeddings, data: dict, tile=(3, 2), side="query", selectors=(), **reductions):
    ask = Ask(reductions=reductions or CONTRAST, side=side, targets=Identity(), selectors=selectors)
    return Table(features, data, tile=tile).rows([ask])[0]


def contrast(features: Embeddings, data: dict, tile=(3, 2)) -> Tensor:
    """Symmetric InfoNCE."""
    asks = [Ask(reductions=CONTRAST, side=side, targets=Identity()) for side in ("query", "key")]
    return sum(
        ((rows["all"] - rows["positive"]) * rows.valid).sum()
        for rows in Table(features, data, tile).rows(asks)
    )


def dense_contrast(features: Embeddings) -> Tensor:
    logits = features.scale * features.query @ features.key.T + features.bias
    labels = torch.arange(len(logits))
    return sum(torch.nn.functional.cross_entropy(x, labels, reduction="sum") for x in (logits, logits.T))


def test_the_gradient_is_right_by_finite_differences():
    features = embeddings(5, 7)
    data = batch([3, 4, 5, 6, 90], range(7))
    asked = {
        "positive": Expected(temperature=0.4),
        "negatives": LogSumExp(over=NEGATIVES),
        "gap": Sum(exp_gap, over=NEGATIVES, given=("positive",)),
    }

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        asks = [Ask(reductions=asked, side=side, targets=Identity()) for side in ("query", "key")]
        return tuple(
            value for rows in Table(Embeddings(*tensors), data, (2, 3)).rows(asks) for value in rows.values()
        )

    assert torch.autograd.gradcheck(outputs, leaves(features))


@pytest.mark.parametrize("size", [1, 2, 7, 12])
@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (5, 12), (512, 1024)])
def test_tiles_equal_the_dense_loss(size, tile):
    features = embeddings(size, size)
    assert_same(contrast(features, batch(range(size), range(size)), tile), dense_contrast(features), features)


def test_a_second_derivative_is_refused():
    features = embeddings(3, 3)
    loss = contrast(features, batch(range(3), range(3)))
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(loss, features.query, create_graph=True)


def test_autocast_changes_nothing():
    features, data = embeddings(6, 6, dtype=torch.float32), batch(range(6), range(6))
    plain = contrast(features, data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = contrast(features, data)
        dense = rows_of(features, data).dense().logits
    assert torch.equal(plain, cast) and dense.dtype is torch.float32
    for mine, other in zip(gradients(plain, features), gradients(cast, features), strict=True):
        assert torch.equal(mine, other)


def test_bf16_rows_give_the_loss_of_their_fp32_cast():
    halves, data = embeddings(9, 9, dtype=torch.bfloat16), batch(range(9), range(9))
    singles = Embeddings(*(x.detach().float().requires_grad_() for x in leaves(halves)))
    loss = contrast(halves, data)
    assert loss.dtype is torch.float32 and torch.equal(loss, contrast(singles, data))
    for half, single in zip(
        gradients(loss, halves), gradients(contrast(singles, data), singles), strict=True
    ):
        assert half.dtype is torch.bfloat16
        torch.testing.assert_close(half, single.bfloat16())


def test_bf16_rows_at_scale_100_are_near_fp64():
    halves, data = embeddings(64, 64, width=32, dtype=torch.bfloat16), batch(range(64), range(64))
    halves = replace(halves, scale=torch.tensor([100.0]))
    doubles = Embeddings(*(x.detach().double() for x in leaves(halves)))
    torch.testing.assert_close(contrast(halves, data).double(), contrast(doubles, data), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["identical", "orthogonal"])
def test_extreme_features_at_scale_100_are_finite(kind):
    rows = torch.eye(4)[:1].expand(600, 4) if kind == "identical" else torch.eye(600)
    features = Embeddings(
        *(x.clone().requires_grad_() for x in (rows, rows, torch.tensor([100.0]), torch.tensor([0.0])))
    )
    loss = contrast(features, batch(range(600), range(600)), tile=(256, 100))
    assert loss.isfinite() and all(slope.isfinite().all() for slope in gradients(loss, features))
    if kind == "identical":
        torch.testing.assert_close(loss, 2 * 600 * torch.tensor(600.0).log())


def test_rows_may_come_in_any_order():
    features = embeddings(6, 6)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    moved = replace(features, query=features.query[order], key=features.key[order.flip(0)])
    moved_batch = batch(order.tolist(), order.flip(0).tolist())
    assert_same(contrast(features, batch(range(6), range(6))), contrast(moved, moved_batch), features)


def test_hard_negatives_after_the_positives_have_no_row_of_their_own():
    features = embeddings(3, 7)
    data = batch(range(3), [0, 1, 2, 100, 101, 102, 103])
    rows = rows_of(features, data, side="key")
    assert rows.valid.tolist() == [True] * 3 + [False] * 4
    logits = features.scale * features.query @ features.key.T + features.bias
    reference = torch.nn.functional.cross_entropy(logits, torch.arange(3), reduction="none")
    mine = rows_of(features, data)
    torch.testing.assert_close(mine["all"] - mine["positive"], reference)


@dataclass(frozen=True)
class Listed:
    """Leaves out columns by id."""

    out: tuple[int, ...]
    fields: tuple[str, ...] = ("row",)
    reductions = {}

    def tile(self, row, column, cosine, targets):
        kept = torch.ones_like(cosine, dtype=torch.bool)
        for name in self.out:
            kept = kept & (column[self.fields[0]] != name)
        return kept


def test_masked_columns_do_not_matter():
    features = embeddings(4, 6)
    masked = rows_of(features, batch(range(4), range(6)), selectors=(Listed((4, 5)),))
    cut = replace(features, key=features.key[:4])
    without = rows_of(cut, batch(range(4), range(4)))
    for name in CONTRAST:
        assert_same(masked[name].sum(), without[name].sum(), features)
    slope = torch.autograd.grad(masked["all"].sum(), features.key, retain_graph=True)[0]
    assert slope[4:].eq(0).all()
    assert masked.dense().mask.sum(1).tolist() == [4] * 4


def test_nothing_to_reduce_is_zero_and_not_valid():
    features, data = embeddings(3, 3), batch([0, 1, 90], [0, 1, 2])
    kinds = {"lse": LogSumExp, "mean": Expected, "max": Max, "count": Count}
    rows = rows_of(features, data, **{name: kind(over=POSITIVES) for name, kind in kinds.items()})
    assert rows.valid.tolist() == [True, True, False]
    assert all(rows[name][2] == 0 for name in rows)
    counted = rows_of(features, data, count=Count(over=POSITIVES), sum=Sum(exp_gap_alone, over=POSITIVES))
    assert counted.valid.all() and counted["sum"][2] == 0


def exp_gap_alone(score: Tensor, target: Tensor) -> Tensor:
    return score.exp()


def test_a_row_without_positives_has_a_finite_gradient_under_what_is_given():
    features = embeddings(3, 3, dtype=torch.float32)
    features = replace(features, scale=torch.tensor([200.0], requires_grad=True))
    with torch.no_grad():
        features.query.copy_(features.key)  # of the last row, exp(200 - 0) would overflow
    rows = rows_of(
        features, batch([0, 1, 90], range(3)), positive=Expected(), gap=Sum(exp_gap, given=("positive",))
    )
    loss = torch.where(rows.valid, rows["gap"].log1p(), 0).sum()
    assert rows["gap"][2] == 0
    assert all(slope.isfinite().all() for slope in gradients(loss, features))


def test_no_rows_at_all():
    features, data = embeddings(0, 0), batch([], [])
    loss = contrast(features, data)
    assert loss == 0 and all(slope.eq(0).all() for slope in gradients(loss, features))


class CountProducts(TorchDispatchMode):
    """How many matrix products a block of code forms."""

    products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "matmul", "bmm")
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(("frozen", "expected"), [((), 3), (("query",), 2), (("query", "key"), 1)])
def test_a_frozen_towers_product_is_not_formed(frozen, expected):
    features = embeddings(4, 4)
    features = replace(features, **{side: getattr(features, side).detach() for side in frozen})
    loss = contrast(features, batch(range(4), range(4)), tile=(4, 4))
    with CountProducts() as count:
        loss.backward()
    assert count.products == expected  # the scores again, then one for each tower that learns


def test_all_terms_and_directions_share_one_pass(monkeypatch):
    seen = []
    sweep = table_module.sweep
    monkeypatch.setattr(
        table_module,
        "sweep",
        lambda grid, operands, cells, given: seen.append(cells) or sweep(grid, operands, cells, given),
    )
    features = embeddings(4, 4)
    asks = [
        Ask(reductions=asked, side=side, targets=Identity())
        for side in ("query", "key")
        for asked in (
            CONTRAST,
            {"positive": Expected(), "sum": Sum(exp_gap_alone)},
            {"sum": Sum(exp_gap_alone)},
        )
    ]
    table = Table(features, batch(range(4), range(4)), tile=(4, 4))
    with CountProducts() as count:
        rows = table.rows(asks)
    assert count.products == 1
    assert [len(cells) for cells in seen] == [6]
    assert rows[1]["sum"] is rows[2]["sum"]


def test_dense_rows_are_the_table():
    features, data = embeddings(4, 6), batch(range(4), range(6))
    for side in ("query", "key"):
        rows = rows_of(features, data, side=side, selectors=(FalseNegative(margin=0.0),))
        dense = rows.dense()
        assert torch.equal(dense.mask.sum(1)[:4] > 0, rows.valid[:4])
        lse = dense.logits.masked_fill(~dense.mask, -torch.inf).logsumexp(1)
        assert_same((rows["all"] * rows.valid).sum(), (lse * rows.valid).sum(), features)
        positive = (dense.logits * dense.targets).sum(1)
        torch.testing.assert_close(positive, rows["positive"])
        torch.testing.assert_close(dense.logits, dense.cosines * features.scale + features.bias)


@pytest.mark.parametrize(
    ("free", "side"), [(2**36, 4096), (2**30, 2048), (2**29, 1024), (2**20, 512), (0, 512)]
)
def test_a_tile_takes_its_share_of_the_free_memory(monkeypatch, free, side):
    """Blocks that torch holds and nobody uses are free."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free // 2, 2**40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2**30 + free // 2)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**30)
    assert table_module.tile_size.__wrapped__(torch.device("cuda")) == (side, side)
    assert table_module.tile_size(torch.device("cpu")) == table_module.CPU_TILE


def test_the_table_takes_any_scale_which_is_clamped_after_the_optimizer_step_only():
    features = replace(embeddings(4, 4), scale=torch.tensor([250.0]).double().requires_grad_())
    assert_same(contrast(features, batch(range(4), range(4))), dense_contrast(features), features)


def test_only_fields_that_somebody_reads_cross_ranks(monkeypatch):
    crossed = []
    monkeypatch.setattr(Shares, "gather", lambda self, x: crossed.append(x) or x)
    features = embeddings(3, 3)
    data = batch(range(3), range(3), caption=(range(3), range(3)), concept=(range(3), range(3)))
    rows_of(features, data)
    keys = data["key_fields"]
    assert [id(x) for x in crossed] == [id(features.key), id(keys["row"])]
    crossed.clear()
    rows_of(features, data, selectors=(Listed((2,), fields=("concept",)),))
    assert [id(x) for x in crossed] == [id(features.key), id(keys["concept"]), id(keys["row"])]


def test_mistakes_are_told():
    features, data = embeddings(2, 2), batch(range(2), range(2))
    ask = Ask(reductions={"gap": Sum(exp_gap, given=("positive",))}, side="query", targets=Identity())
    with pytest.raises(ValueError, match="'gap' is given 'positive', which is not among those before it"):
        Table(features, data).rows([ask])
    ask = Ask(reductions=CONTRAST, side="query", targets=Identity(same=("concept",)))
    with pytest.raises(
        UserError, match="'concept', which the query rows do not have; .* source's `concept:`"
    ):
        Table(features, data).rows([ask])
    with pytest.raises(UserError, match="selectors read the field 'concept', which the query rows"):
        rows_of(features, data, selectors=(Listed((2,), fields=("concept",)),))
