from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.ops.worlds import Graded, assert_same, batch, embeddings
from vlalign.ops.ask import Ask
from vlalign.ops.reductions import (
    ALL,
    NEGATIVES,
    POSITIVES,
    TARGETS,
    Count,
    Expected,
    LogSumExp,
    Max,
    Reduction,
    Sum,
)
from vlalign.ops.table import Table


@dataclass(frozen=True)
class Unflagged:
    """Leaves out columns with a flag."""

    fields = ("flag",)
    reductions = {}

    def tile(self, row, column, cosine, targets):
        return (column["flag"] == 0).expand_as(cosine)


def squared_hinge(score: Tensor, target: Tensor) -> Tensor:
    return (1 + score * (1 - 2 * target)).clamp(min=0) ** 2


def gap(score: Tensor, target: Tensor, positive: Tensor, count: Tensor) -> Tensor:
    return torch.nn.functional.softplus(score - positive) / (1 + count)


def naive(reduction: Reduction, scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """One row at a time, one pair at a time; NaN where there is nothing to reduce."""
    answers = []
    for score, target, counts in zip(scores, targets, mask, strict=True):
        chosen = {
            ALL: [(s, t, 1.0) for s, t, c in zip(score, target, counts, strict=True) if c],
            POSITIVES: [(s, t, 1.0) for s, t, c in zip(score, target, counts, strict=True) if c and t > 0],
            NEGATIVES: [(s, t, 1.0) for s, t, c in zip(score, target, counts, strict=True) if c and t == 0],
            TARGETS: [(s, t, t) for s, t, c in zip(score, target, counts, strict=True) if c and t > 0],
        }[reduction.over]
        if isinstance(reduction, Count):
            answer = sum(w for _, _, w in chosen) * torch.ones(()).double()
        elif isinstance(reduction, Sum):
            answer = sum((w * reduction.term(s, t) for s, t, w in chosen), start=torch.zeros(()).double())
        elif not chosen:
            answer = torch.tensor(float("nan")).double()
        elif isinstance(reduction, LogSumExp):
            answer = sum(w * s.exp() for s, _, w in chosen).log()
        elif isinstance(reduction, Expected):
            answer = sum(w * s for s, _, w in chosen) / sum(w for _, _, w in chosen)
        else:
            answer = torch.stack([s for s, _, _ in chosen]).amax()
        answers.append(answer + 0 * score.sum())
    return torch.stack(answers)


REDUCTIONS = [
    kind(over=over, temperature=temperature)
    for kind in (LogSumExp, Expected, Max, Count)
    for over in (ALL, POSITIVES, NEGATIVES, TARGETS)
    for temperature in (None, 0.3, -0.3)
] + [Sum(squared_hinge, over=over, temperature=t) for over in (ALL, TARGETS) for t in (None, 0.3)]


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 8), (7, 7), (11, 3)])
def test_every_reduction_equals_a_loop_in_value_and_gradient(side, queries, keys):
    features = embeddings(queries, keys)
    flags = [column % 3 == 2 for column in range(keys)]
    data = batch(range(0, 2 * queries, 2), range(keys), flag=([0] * queries, flags))
    selectors = () if side == "key" else (Unflagged(),)
    asked = {str(at): reduction for at, reduction in enumerate(REDUCTIONS)}
    ask = Ask(reductions=asked, side=side, targets=Graded(), selectors=selectors)
    [rows] = Table(features, data, tile=(3, 2)).rows([ask])

    cosines = features.query @ features.key.T
    logits = features.scale * cosines + features.bias
    targets = Graded().tile(
        {"row": torch.arange(0, 2 * queries, 2)[:, None]}, {"row": torch.arange(keys)[None]}
    )
    mask = ~torch.tensor(flags).expand(queries, keys) if selectors else torch.ones(queries, keys).bool()
    turn = (lambda x: x) if side == "query" else (lambda x: x.T)
    for name, reduction in asked.items():
        scores = logits if reduction.temperature is None else cosines / reduction.temperature
        reference = naive(reduction, turn(scores), turn(targets), turn(mask)).nan_to_num(0)
        weights = torch.arange(1, len(reference) + 1)
        if isinstance(reduction, Count):
            assert torch.equal(rows[name], reference)
        else:
            assert_same((rows[name] * weights).sum(), (reference * weights).sum(), features)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 10),
    st.integers(1, 10),
    st.sampled_from(["query", "key"]),
)
@settings(max_examples=30, deadline=None)
def test_no_size_and_no_tile_changes_an_answer(queries, keys, tall, wide, side):
    features = embeddings(queries, keys)
    data = batch(range(queries), range(keys))
    ask = Ask(reductions={"a": LogSumExp(), "b": Max(over=NEGATIVES)}, side=side, targets=Graded())
    whole, cut = (Table(features, data, tile=tile).rows([ask])[0] for tile in ((9, 9), (tall, wide)))
    assert torch.equal(whole.valid, cut.valid)
    for name in whole:
        assert_same(whole[name].sum(), cut[name].sum(), features)


@pytest.mark.parametrize("side", ["query", "key"])
def test_what_is_given_enters_with_its_gradient(side):
    features = embeddings(5, 7)
    asked = {
        "positive": Expected(),
        "count": Count(over=NEGATIVES),
        "gap": Sum(gap, over=NEGATIVES, given=("positive", "count")),
    }
    data = batch(range(0, 10, 2), range(7))
    [rows] = Table(features, data, tile=(2, 3)).rows([Ask(reductions=asked, side=side, targets=Graded())])
    dense = rows.dense()
    negative = dense.targets == 0
    positive = (dense.logits * dense.targets).sum(1) / dense.targets.sum(1).clamp(min=1e-9)
    counts = negative.sum(1)
    pairs = gap(dense.logits, dense.targets, positive[:, None], counts[:, None])
    reference = (pairs * negative).sum(1) * rows.valid
    assert_same((rows["gap"] * rows.valid).sum(), reference.sum(), features)


def test_equal_maxima_share_the_gradient_across_tiles():
    features = embeddings(1, 6)
    with torch.no_grad():
        features.key.copy_(features.key[:1].expand(6, -1))
    ask = Ask(reductions={"best": Max()}, side="query", targets=Graded())
    [rows] = Table(features, batch([0], range(6)), tile=(1, 2)).rows([ask])
    (slope,) = torch.autograd.grad(rows["best"].sum(), features.key)
    torch.testing.assert_close(slope, (features.scale * features.query / 6).expand(6, -1).detach())


def test_equal_reductions_are_equal_values():
    assert Sum(squared_hinge) == Sum(term=squared_hinge)
    assert hash(Sum(squared_hinge)) == hash(Sum(term=squared_hinge))
    assert Sum(squared_hinge) != Sum(gap)
    assert LogSumExp(temperature=0.1) != LogSumExp()


@pytest.mark.parametrize("temperature", [0, 0.0, float("inf"), float("nan")])
def test_a_temperature_must_be_a_number_to_divide_by(temperature):
    with pytest.raises(ValueError, match=f"temperature must be finite and not 0, got {temperature}"):
        LogSumExp(temperature=temperature)
