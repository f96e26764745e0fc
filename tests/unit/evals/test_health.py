import math

import pytest
import torch

from vlalign.evals.metrics.alignment_uniformity import alignment, uniformity
from vlalign.evals.metrics.modality_gap import modality_gap
from vlalign.evals.metrics.rank_me import rank_me, spectrum


@pytest.fixture
def rows():
    return torch.nn.functional.normalize(
        torch.randn(50, 12, generator=torch.Generator().manual_seed(0)), dim=1
    )


def test_spectrum_is_that_of_the_svd(rows):
    for matrix in (rows, rows.T.contiguous(), rows.half()):
        expected = torch.linalg.svdvals(matrix.double())
        assert torch.allclose(spectrum(matrix), expected, atol=1e-9)
        assert rank_me(spectrum(matrix)) == pytest.approx(rank_me(expected), abs=1e-3)


def test_rank_me_by_hand(rows):
    assert rank_me(spectrum(torch.eye(16))) == pytest.approx(16.00005, abs=2e-5)
    assert rank_me(spectrum(rows[:, :1] @ rows[:1])) == pytest.approx(1.00002, abs=1e-5)
    assert rank_me(torch.tensor([3.0, 3.0, 3.0, 0, 0], dtype=torch.float64)) == pytest.approx(3, abs=1e-4)


def test_rank_me_ignores_scale_order_rotation_and_repeated_rows(rows):
    value = rank_me(spectrum(rows))
    rotation = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1)).double()).Q
    for other in (rows * 7, rows.flip(0), rows.double() @ rotation, rows.repeat(3, 1)):
        assert rank_me(spectrum(other)) == pytest.approx(value, abs=1e-5)
    assert 1 < rank_me(spectrum(rows + 5)) < value < 12 + 1e-4


def test_alignment_and_uniformity_against_loops(rows):
    other = rows.roll(1, 0)
    distances = [math.dist(a, b) for a, b in zip(rows.tolist(), other.tolist(), strict=True)]
    assert alignment(rows, other) == pytest.approx(sum(d**2 for d in distances) / 50, rel=1e-6)
    assert alignment(rows, other, alpha=1.0) == pytest.approx(sum(distances) / 50, rel=1e-6)
    assert alignment(rows, rows) == 0
    pairs = [math.dist(a, b) for i, a in enumerate(rows.tolist()) for b in rows.tolist()[:i]]
    expected = math.log(sum(math.exp(-2 * d**2) for d in pairs) / len(pairs))
    for block in (1, 7, 50, 64):
        assert uniformity(rows, block=block) == pytest.approx(expected, rel=1e-6)
    assert uniformity(torch.ones(4, 3)) == pytest.approx(0, abs=1e-9)


def test_modality_gap(rows):
    assert modality_gap(rows, rows.flip(0)) == pytest.approx(0, abs=1e-12)
    left, right = torch.tensor([[1.0, 0.0]] * 3), torch.tensor([[0.0, 1.0]] * 2)
    assert modality_gap(left, right) == pytest.approx(math.sqrt(2))
