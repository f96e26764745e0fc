import torch

from tests.unit.ops.worlds import Largest
from vlalign.ops.likeness import cosines


def test_equals_a_loop_in_either_order():
    one, other = torch.randn(5, 1, 3, dtype=torch.float64), torch.randn(1, 4, 3, dtype=torch.float64)
    found = cosines(one, other)
    for row in range(5):
        for column in range(4):
            torch.testing.assert_close(found[row, column], one[row, 0] @ other[0, column])
    torch.testing.assert_close(cosines(other, one), found)
    assert cosines(one[:1], other[:, :1]).shape == (1, 1)


def test_no_width_in_the_table():
    one, other = torch.randn(30, 1, 64), torch.randn(1, 40, 64)
    with Largest() as seen:
        cosines(one, other)
    assert seen.numbers <= max(30 * 40, 40 * 64)
