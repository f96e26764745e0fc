"""Groups of candidates as rows: whatever order pairs come in, and every reduction against a loop."""

import math
from dataclasses import dataclass

import pytest
import torch

from vlalign.ops.ask import Ask
from vlalign.ops.groups import GroupRows, Groups
from vlalign.ops.reductions import (
    ALL,
    NEGATIVES,
    POSITIVES,
    TARGETS,
    Count,
    Expected,
    LogSumExp,
    Max,
    Sum,
)
from vlalign.supervision.targets.given import Given
from vlalign.types import UserError

GROUP = torch.tensor([2, 0, 2, 0, 0, 4, 2, 0])  # queries 1 and 3 have no candidate, 4 has one
LABELS = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0, 0.25], dtype=torch.float64)
QUERIES = 5


def scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(len(GROUP), generator=generator, dtype=torch.float64)).requires_grad_()


def above(score, target, peak):
    return (score - peak).square() * (1 + target)


REDUCTIONS = {
    "positive": Expected(),
    "mean": Expected(over=ALL),
    "all": LogSumExp(),
    "negatives": LogSumExp(over=NEGATIVES, temperature=0.5),
    "soft": LogSumExp(over=TARGETS),
    "best": Max(over=POSITIVES),
    "count": Count(over=NEGATIVES),
    "sum": Sum(above, given=("all",), over=NEGATIVES),
}


def naive(score, label):
    """Of one query's candidates; None where there is nothing to reduce."""

    def lse(values):
        return torch.stack(values).logsumexp(0) if values else None

    pairs = list(zip(score, label, strict=True))
    right, wrong = [s for s, t in pairs if t > 0], [s for s, t in pairs if t <= 0]
    whole = lse([s for s, _ in pairs])
    return {
        "positive": sum(s * t for s, t in pairs) / sum(t for _, t in pairs) if right else None,
        "mean": sum(s for s, _ in pairs) / len(pairs) if pairs else None,
        "all": whole,
        "negatives": lse([s / 0.5 for s in wrong]),
        "soft": lse([s + t.log() for s, t in pairs if t > 0]),
        "best": max(right) if right else None,
        "count": torch.tensor(float(len(wrong))),
        "sum": sum((above(s, 0, whole) for s in wrong), torch.tensor(0.0)) if pairs else torch.tensor(0.0),
    }


def rows(score, reductions, group=GROUP, label=LABELS):
    ask = Ask(reductions=reductions, side="query", targets=Given())
    return GroupRows(score, Groups(group, QUERIES), ask, ({}, {"label": label}))


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_reduction_equals_a_loop(name):
    score = scores()
    asked = {key: REDUCTIONS[key] for key in ("all", name)}  # the sum is given the log-sum-exp
    found = rows(score, asked)
    loop = [naive(score[query == GROUP], LABELS[query == GROUP]) for query in range(QUERIES)]
    expected = torch.stack(
        [each[name] if each[name] is not None else 0 * score.sum() for each in loop]
    ).double()
    torch.testing.assert_close(found[name], expected)
    assert found.valid.tolist() == [each[name] is not None and each["all"] is not None for each in loop]
    if name != "count":
        slopes = (torch.autograd.grad(total.sin().sum(), score)[0] for total in (found[name], expected))
        torch.testing.assert_close(*slopes)


def test_gradients_are_right_by_finite_differences():
    names = [name for name in REDUCTIONS if name != "count"]
    assert torch.autograd.gradcheck(lambda x: [rows(x, REDUCTIONS)[name] for name in names], scores())


def test_the_order_that_pairs_come_in_does_not_matter():
    score, order = scores(), torch.randperm(len(GROUP), generator=torch.Generator().manual_seed(1))
    one = rows(score, REDUCTIONS)
    other = rows(score[order], REDUCTIONS, GROUP[order], LABELS[order])
    for name in REDUCTIONS:
        torch.testing.assert_close(one[name], other[name])


def test_whole_rows_hold_each_pair_once_and_mask_the_rest():
    dense = rows(scores(), {}).dense()
    assert dense.logits.shape == (QUERIES, 4) and dense.mask.sum(1).tolist() == [4, 0, 3, 0, 1]
    assert sorted(dense.logits[dense.mask].tolist()) == sorted(scores().tolist())
    assert (dense.logits[~dense.mask] == 0).all() and dense.logits.dtype == torch.float64


def test_bf16_scores_are_reduced_in_float32():
    score = scores().detach().bfloat16().requires_grad_()
    found = rows(score, {"all": LogSumExp()})["all"]
    assert found.dtype == torch.float32
    found.sum().backward()
    assert score.grad.dtype == torch.bfloat16 and score.grad.isfinite().all()


def test_without_any_pair_there_is_nothing():
    nothing = torch.zeros(0, dtype=torch.int64)
    found = rows(torch.zeros(0, requires_grad=True), {"all": LogSumExp()}, nothing, torch.zeros(0))
    assert not found.valid.any() and found["all"].tolist() == [0] * QUERIES


def test_a_field_that_is_missing_is_told():
    ask = Ask(reductions={}, side="query", targets=Given(field="teacher"))
    with pytest.raises(
        UserError, match="read the field 'teacher', which the candidates do not have; they have label"
    ):
        GroupRows(scores(), Groups(GROUP, QUERIES), ask, ({}, {"label": LABELS}))


def test_a_second_derivative_is_refused():
    score = scores()
    (slope,) = torch.autograd.grad(rows(score, {"all": LogSumExp()})["all"].sum(), score, retain_graph=True)
    assert math.isfinite(slope.sum())
    with pytest.raises(NotImplementedError, match="no second derivative"):
        torch.autograd.grad(rows(score, {"all": LogSumExp()})["all"].sum(), score, create_graph=True)


@dataclass(frozen=True)
class OfBoth:
    query_fields, key_fields = ("group",), ("label", "group")

    def tile(self, query, key):
        return (query["group"] == key["group"]) & (key["label"] > 0)


def test_targets_may_compare_a_query_with_its_candidates():
    ask = Ask(reductions={}, side="query", targets=OfBoth())
    pairs = {"label": LABELS, "group": GROUP}
    found = GroupRows(scores(), Groups(GROUP, QUERIES), ask, ({"group": torch.arange(QUERIES)}, pairs))
    assert found.target.sum(1).tolist() == [2, 0, 2, 0, 0]
