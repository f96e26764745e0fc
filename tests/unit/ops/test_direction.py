"""A direction against its definition, and what follows from that."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from vlalign.ops.direction import between, debias, fit, pole, read, removed, score, write
from vlalign.types import UserError


def rows(count, seed, dim=6):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


POSITIVE, NEGATIVE = rows(7, 0) + 0.5, rows(5, 1) - 0.5


def unit(values):
    length = math.sqrt(sum(x * x for x in values))
    return [x / length for x in values]


def middle(table):
    """The unit mean of unit rows, by hand."""
    each = [unit(row) for row in table.tolist()]
    return unit([sum(column) / len(each) for column in zip(*each, strict=True)])


def test_equals_the_definition():
    positive, negative = middle(POSITIVE), middle(NEGATIVE)
    wanted = unit([p - n for p, n in zip(positive, negative, strict=True)])
    found = fit(POSITIVE, NEGATIVE)
    torch.testing.assert_close(found.vector, torch.tensor(wanted, dtype=torch.float64))
    assert found.target == pytest.approx(sum(p * v for p, v in zip(positive, wanted, strict=True)))
    assert found.steepness is None
    scores = [sum(x * v for x, v in zip(unit(row), wanted, strict=True)) for row in POSITIVE.tolist()]
    assert score(normalize(POSITIVE, dim=1), found.vector).tolist() == pytest.approx(scores)


def test_zero_is_midway_and_the_target_follows_from_the_angle():
    found, positive, negative = fit(POSITIVE, NEGATIVE), pole(POSITIVE), pole(NEGATIVE)
    assert found.target == pytest.approx(math.sqrt((1 - float(positive @ negative)) / 2))
    assert float(negative @ found.vector) == pytest.approx(-found.target)
    torch.testing.assert_close(found.vector.norm(), torch.ones((), dtype=torch.float64))


def test_swapped_classes_turn_it_round():
    there, back = fit(POSITIVE, NEGATIVE), fit(NEGATIVE, POSITIVE)
    torch.testing.assert_close(there.vector, -back.vector)
    assert there.target == pytest.approx(back.target)


def test_neither_order_nor_number_nor_length_of_rows_matters():
    lengths = torch.arange(1, 8, dtype=torch.float64)[:, None]
    for same in (POSITIVE.flip(0), POSITIVE.repeat(3, 1), POSITIVE * lengths):
        torch.testing.assert_close(fit(same, NEGATIVE).vector, fit(POSITIVE, NEGATIVE).vector)


def test_without_unwanted_directions_it_is_orthogonal_to_all_of_them():
    unwanted = rows(3, 2)
    for some in (unwanted[:1], unwanted, torch.cat([unwanted, 2 * unwanted[:1]])):  # of lower rank too
        found = fit(POSITIVE, NEGATIVE, some)
        torch.testing.assert_close(some @ found.vector, torch.zeros(len(some), dtype=torch.float64))
        assert found.target == pytest.approx(float(pole(POSITIVE) @ found.vector))
    one = normalize(unwanted[0], dim=0)
    plain = fit(POSITIVE, NEGATIVE).vector
    torch.testing.assert_close(debias(plain, one[None]), normalize(plain - (one @ plain) * one, dim=0))
    orthogonal = debias(one, plain[None])
    torch.testing.assert_close(debias(plain, orthogonal[None]), plain)


def test_a_row_without_it_scores_zero_and_what_is_left_keeps_its_proportions():
    vector, own = fit(POSITIVE, NEGATIVE).vector, normalize(rows(9, 3), dim=1)
    left = removed(own, vector)
    torch.testing.assert_close(score(left, vector), torch.zeros(9, dtype=torch.float64))
    torch.testing.assert_close(left.norm(dim=1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(removed(left, vector), left)
    torch.testing.assert_close(left[0], normalize(own[0] - (own[0] @ vector) * vector, dim=0))
    assert removed(vector[None], vector).eq(0).all()


def test_bf16():
    found = fit(POSITIVE.bfloat16(), NEGATIVE.bfloat16())
    assert found.vector.dtype == torch.float32
    torch.testing.assert_close(found.vector.double(), fit(POSITIVE, NEGATIVE).vector, rtol=0.02, atol=0.02)


def test_a_file_gives_back_what_was_written(tmp_path):
    path = tmp_path / "direction.safetensors"
    for steepness in (None, 3.5):
        told = between(pole(POSITIVE).float(), pole(NEGATIVE).float())
        told = told._replace(steepness=steepness, model="abc")
        write(told, path)
        found = read(path)
        assert torch.equal(found.vector, told.vector) and found[2:] == (steepness, "abc")
        assert found.target == pytest.approx(told.target)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: fit(POSITIVE, 2 * POSITIVE), "the same mean embedding; give examples that differ"),
        (lambda: fit(torch.stack([POSITIVE[0], -POSITIVE[0]]), NEGATIVE), "2 embeddings have no mean"),
        (lambda: fit(POSITIVE[:0], NEGATIVE), "0 embeddings have no mean"),
        (lambda: fit(POSITIVE, NEGATIVE, torch.eye(6)), "nothing is left of the direction"),
        (lambda: read("nowhere.safetensors"), "nowhere.safetensors: this is no direction"),
        (lambda: read(__file__), "this is no direction that `vlalign direction` wrote"),
    ],
)
def test_what_points_nowhere_is_told(wrong, told):
    with pytest.raises(UserError, match=told):
        wrong()


def test_another_file_of_tensors_is_no_direction(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="this is no direction"):
        read(tmp_path / "other.safetensors")
