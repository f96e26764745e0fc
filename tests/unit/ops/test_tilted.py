import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import Graded, assert_same, batch, embeddings, gradients, leaves
from vlalign.ops.ask import Ask
from vlalign.ops.reductions import ALL, NEGATIVES, POSITIVES, TARGETS
from vlalign.ops.table import Table
from vlalign.ops.tilted import Tilted
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.types import Embeddings

ALL_KINDS = {
    f"{over}, {temperature}, {detached}": Tilted(over=over, temperature=temperature, detached=detached)
    for over in (ALL, POSITIVES, NEGATIVES, TARGETS)
    for temperature in (None, 0.3, -0.3)
    for detached in (False, True)
}


def naive(reduction: Tilted, scores: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """One row at a time; 0 where there is nothing to reduce."""
    answers = []
    for score, target, counts in zip(scores, targets, mask, strict=True):
        chosen = {
            ALL: counts.double(),
            POSITIVES: counts * (target > 0).double(),
            NEGATIVES: counts * (target == 0).double(),
            TARGETS: counts * target,
        }[reduction.over]
        pairs = [(w, s) for w, s in zip(chosen, score, strict=True) if w > 0]
        weights = [w * s.exp() for w, s in pairs]
        total = sum(weights, start=torch.zeros(()).double())
        shares = [w / total for w in weights]
        shares = [share.detach() for share in shares] if reduction.detached else shares
        answer = sum((share * s for share, (_, s) in zip(shares, pairs, strict=True)), start=0 * score.sum())
        answers.append(answer)
    return torch.stack(answers)


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (5, 8), (7, 7), (11, 3)])
def test_equals_a_loop_in_value_and_gradient(side, queries, keys):
    features = embeddings(queries, keys)
    query, key = range(0, 2 * queries, 2), range(keys)
    ask = Ask(reductions=ALL_KINDS, side=side, targets=Graded(), selectors=(FalseNegative(margin=0.2),))
    [rows] = Table(features, batch(query, key), tile=(3, 2)).rows([ask])
    dense = rows.dense()
    for name, reduction in ALL_KINDS.items():
        seen = reduction.temperature
        scores = dense.logits if seen is None else dense.cosines / seen
        reference = naive(reduction, scores, dense.targets, dense.mask)
        weights = torch.arange(1, len(reference) + 1)
        assert_same((rows[name] * weights).sum(), (reference * weights).sum(), features)


@pytest.mark.parametrize("side", ["query", "key"])
def test_the_gradient_is_right_by_finite_differences(side):
    asked = {name: kind for name, kind in ALL_KINDS.items() if not kind.detached}
    ask = Ask(reductions=asked, side=side, targets=Graded())

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        data = batch([3, 4, 90], range(4))
        return tuple(Table(Embeddings(*tensors), data, (2, 3)).rows([ask])[0].values())

    assert torch.autograd.gradcheck(outputs, leaves(embeddings(3, 4)))


def test_a_row_without_pairs_is_zero_and_not_valid():
    features = embeddings(3, 3)
    ask = Ask(reductions={"mean": Tilted(over=POSITIVES)}, side="query", targets=Identity())
    [rows] = Table(features, batch([0, 90, 2], range(3)), (2, 2)).rows([ask])
    assert rows.valid.tolist() == [True, False, True] and rows["mean"][1] == 0
    assert gradients(rows["mean"].sum(), features)[0][1].eq(0).all()


def test_large_scores_do_not_overflow():
    features = embeddings(6, 6, dtype=torch.float32)
    ask = Ask(reductions={"far": Tilted(temperature=-1e-3)}, side="query", targets=Identity())
    [rows] = Table(features, batch(range(6), range(6)), (2, 2)).rows([ask])
    lowest = (features.query @ features.key.T).amin(1)
    torch.testing.assert_close(rows["far"] * -1e-3, lowest, atol=1e-4, rtol=1e-4)
    assert all(slope.isfinite().all() for slope in gradients(rows["far"].sum(), features))
