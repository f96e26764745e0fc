import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Largest, assert_same, batch, embeddings, leaves
from vlalign.ops.ask import Ask
from vlalign.ops.histogram import cells
from vlalign.ops.rows import TableRows
from vlalign.ops.table import Table
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings

BINS = 16
POINTS = torch.linspace(-1, 1, BINS, dtype=torch.float64)


def rows_of(features: Embeddings, data: dict, side="query", selectors=(), tile=(3, 2)) -> TableRows:
    ask = Ask(reductions={}, side=side, targets=Identity(), selectors=selectors)
    return Table(features, data, tile).rows([ask])[0]


def naive(features: Embeddings, rows: TableRows) -> Tensor:
    """Each negative reaches the points around it as far as it is near."""
    dense = rows.dense()
    negatives = dense.cosines[dense.mask & ~dense.targets]
    width = POINTS[1] - POINTS[0]
    return sum((1 - (cosine - POINTS).abs() / width).clamp(min=0) for cosine in negatives)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("selectors", [(), (FalseNegative(margin=0.0),)])
@pytest.mark.parametrize("tile", [(1, 1), (3, 2), (9, 9)])
def test_equals_a_loop_in_value_and_gradient(side, selectors, tile):
    features, data = embeddings(5, 7), batch([3, 4, 5, 6, 90], range(7))
    rows = rows_of(features, data, side, selectors, tile)
    counts, reference = rows.histogram(BINS), naive(features, rows)
    assert counts.dtype is torch.float64
    torch.testing.assert_close(counts, reference)
    assert_same((counts * POINTS.cos()).sum(), (reference * POINTS.cos()).sum(), features)


def test_the_gradient_is_right_by_finite_differences():
    def outputs(*tensors: Tensor) -> Tensor:
        return rows_of(Embeddings(*tensors), batch(range(4), range(4))).histogram(BINS)

    assert torch.autograd.gradcheck(outputs, leaves(embeddings(4, 4)))


def test_total_and_mean_are_kept():
    features, data = embeddings(6, 6), batch(range(6), range(6))
    rows = rows_of(features, data)
    counts, dense = rows.histogram(BINS), rows.dense()
    torch.testing.assert_close(counts.sum(), torch.tensor(30.0).double())
    torch.testing.assert_close((counts * POINTS).sum(), dense.cosines[~dense.targets].sum())


def test_rounding_beyond_one_goes_on_in_the_outer_cells():
    cosine = torch.tensor([-1.0, 1.0, -1.01, 1.01], dtype=torch.float64, requires_grad=True)
    cell, share = cells(cosine, BINS)
    assert cell.tolist() == [0, BINS - 2, 0, BINS - 2]
    torch.testing.assert_close(torch.lerp(POINTS[cell], POINTS[cell + 1], share), cosine)
    slope = torch.autograd.grad(share.sum(), cosine)[0]
    torch.testing.assert_close(slope, torch.full_like(slope, (BINS - 1) / 2))


def test_no_rows_and_no_negatives():
    for size in (0, 1):
        features = embeddings(size, size)
        counts = rows_of(features, batch(range(size), range(size))).histogram(BINS)
        assert counts.eq(0).all()
        assert torch.autograd.grad(counts.sum(), features.query)[0].eq(0).all()


def test_float32_counts_to_the_last_one():
    features, data = embeddings(96, 96, dtype=torch.float32), batch(range(96), range(96))
    with torch.no_grad():
        features.query.copy_(features.query[:1].expand(96, -1))
        features.key.copy_(features.query)
    counts = rows_of(features, data, tile=(96, 96)).histogram(BINS)
    torch.testing.assert_close(counts.sum(), torch.tensor(96 * 95.0).double(), rtol=1e-12, atol=0)


def test_nothing_is_as_large_as_the_table_and_there_is_no_second_derivative():
    features, rows = embeddings(96, 96), range(96)
    with Largest() as largest:
        counts = rows_of(features, batch(rows, rows), tile=(16, 24)).histogram(BINS)
        (counts * POINTS).sum().backward(retain_graph=True)
    assert largest.numbers <= 96 * 4 * 2
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad((counts * POINTS).sum(), features.query, create_graph=True)
