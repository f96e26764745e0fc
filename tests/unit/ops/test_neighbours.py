import pytest
import torch
from torch import Tensor

from vlalign.ops import neighbours
from vlalign.ops.neighbours import neighbour_pairs


def naive(rows: Tensor, count: int) -> set[tuple[int, int]]:
    """One row at a time."""
    edges = set()
    for i, row in enumerate(rows):
        cosines = {
            j: float(row @ other / (row.norm() * other.norm())) for j, other in enumerate(rows) if j != i
        }
        for j in sorted(cosines, key=cosines.__getitem__)[::-1][:count]:
            edges |= {(i, j), (j, i)}
    return edges


@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("block", [4, 1024])
def test_equals_a_loop(monkeypatch, count, block):
    monkeypatch.setattr(neighbours, "BLOCK", block)
    rows = torch.randn(11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = neighbour_pairs(rows, count).T.tolist()
    assert len({tuple(edge) for edge in found}) == len(found)
    assert {tuple(edge) for edge in found} == naive(rows, count)


def test_one_row_has_no_neighbour():
    assert neighbour_pairs(torch.ones(1, 3), 5).shape == (2, 0)
