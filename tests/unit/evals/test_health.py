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


@pytest.mark.parametrize("shape", [(50, 12), (12, 50), (30, 30), (2, 9), (1, 5)])
def test_rank_me_lies_between_one_and_the_smaller_side(shape):
    generator = torch.Generator().manual_seed(2)
    for values in (torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) ** 8):
        assert 1 - 1e-5 <= rank_me(spectrum(values)) <= min(shape) * (1 + 1e-5)


def test_rank_me_of_a_block_of_equal_values_is_its_size():
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(40, 40, generator=generator).double()).Q for _ in range(2))
    for size in (1, 5, 40):
        rows = left[:, :size] @ right[:size]
        assert rank_me(spectrum(5 * rows)) == pytest.approx(size, abs=1e-3)
        gram, exact = rank_me(spectrum(rows)), rank_me(torch.linalg.svdvals(rows))
        assert gram == pytest.approx(exact, abs=1e-3)


def test_rank_me_ignores_an_orthogonal_map_on_either_side(rows):
    generator = torch.Generator().manual_seed(4)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator).double()).Q for n in rows.shape)
    value = rank_me(spectrum(rows))
    assert rank_me(spectrum(left @ rows.double() @ right)) == pytest.approx(value, abs=1e-5)
    stretched = rows * torch.linspace(0.1, 3, rows.shape[1])  # a map that is none changes it
    assert abs(rank_me(spectrum(stretched)) - value) > 0.1


def test_a_constant_vector_moves_rank_me_towards_one(rows):
    shift = torch.randn(12, generator=torch.Generator().manual_seed(5))
    values = [rank_me(spectrum(rows + size * shift)) for size in (0, 1, 3, 10, 100, 1e4)]
    assert values == sorted(values, reverse=True) and values[0] > 10
    assert values[-1] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rank_me_of_half_precision_is_computed_in_double(rows, dtype):
    half = rows.to(dtype)
    assert spectrum(half).dtype == torch.float64
    assert rank_me(spectrum(half)) == rank_me(spectrum(half.double()))


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
