"""Which keys belong to a query, when there are more of them than queries, or equal ones."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.traps.cases import CAPTIONS, CASES, OBJECTIVES, Results, build, gradients, pairs
from tests.traps.test_gradients import close

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["direct", "cached"])
def test_13_label_offset_with_hard_negatives(two: list[Results], place, mode):
    """Counting labels by rank x rows is wrong once a rank has more keys than queries: here the hard negatives
    of two ranks, unequally many, leave every query its own key."""
    count, case = 13, f"hard_{mode}"
    assert [sum(sizes) for sizes in CASES[case].chunks] == [7, 6]
    model, batch = build(place), pairs(range(count), hard=True)
    out = model(batch)
    logits = out.scale * out.query @ out.key.T + out.bias
    assert logits.shape == (count, count + 7)
    labels = torch.arange(count)
    loss = (cross_entropy(logits, labels) + cross_entropy(logits.T[:count], labels)) / 2
    loss.backward()
    for results in two:
        assert results[case]["loss"] == pytest.approx(loss.item(), rel=1e-6)
        numbers = {name: results[case][name] for name in ("loss", "norm", "own", "rows")}
        # A float64 reference is 1.3e-6 away on a CPU with AMX: the step's own float32, not the labels.
        close(results[case], gradients(model) | numbers, 2e-6)


@pytest.mark.parametrize("objective", [*OBJECTIVES, "log_of_sum"])
def test_14_one_caption_twice(two: list[Results], objective):
    """A caption that two pictures share is a negative of each elsewhere: here no pair of them is pushed
    apart, on one rank or on two, when the recipe says that captions make positives."""
    told = CAPTIONS[:, None] == CAPTIONS
    twins = told & ~torch.eye(len(CAPTIONS), dtype=torch.bool)
    assert twins[:6, :6].sum() == 2 and twins[:6, 6:].sum() == 2
    told_apart, one = (
        torch.cat([results[f"{objective}_{same}"]["slope"] for results in two]) for same in ("row", "caption")
    )
    assert (told_apart[twins] > 0).all()  # a step goes against the slope
    assert (one[told] < 0).all() and (one[~told] > 0).all()
