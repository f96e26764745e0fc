import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import assert_same, embeddings, gradients
from vlalign.objectives.embedding.sbcl import SBCL
from vlalign.types import Context, Embeddings

LABEL = [0, 0, 0, 0, 1, 1]
SUBCLASS = [0, 0, 1, 2, 0, 0]  # numbered within a class: class 1's is not class 0's
SPREAD = [1.7, 1.7, 1.7, 1.7, 0.6, 0.6]
EXTRA = ([0, 1, 2], [1, 5, 0], [1.0, 1.0, 1.0])  # fields of keys that are nobody's own


def context(label=LABEL, subclass=SUBCLASS, spread=SPREAD, extra=((), (), ())) -> Context:
    names = ("concept", "subclass", "spread")
    rows = [torch.tensor(x) for x in (label, subclass, spread)]
    more = [torch.tensor(x, dtype=row.dtype) for x, row in zip(extra, rows, strict=True)]
    keys = [torch.cat(pair) for pair in zip(rows, more, strict=True)]
    both = {"query_fields": rows, "key_fields": keys}
    return Context({side: dict(zip(names, x, strict=True)) for side, x in both.items()}, None, 0, 1)


def anchor(scores: list[Tensor], at: int, row: dict, column: dict, spread: float, loss: SBCL) -> Tensor:
    """The loss of one view: cosines to the other view's rows, its own at the same place."""
    everyone = range(len(scores))
    same = [i for i in everyone if column["concept"][i] == row["concept"][at]]
    alike = [i for i in same if column["subclass"][i] == row["subclass"][at]]
    subclass = sorted({at, *alike})
    kin = sorted({at, *same} - (set(alike) - {at}))
    left = [i for i in everyone if i == at or i not in alike]
    hot, cold = loss.temperature, loss.temperature * spread
    near = sum(
        ((scores[p] / hot).exp() / sum((scores[a] / hot).exp() for a in everyone)).log() for p in subclass
    )
    far = sum(((scores[p] / cold).exp() / sum((scores[a] / cold).exp() for a in left)).log() for p in kin)
    return -near / len(subclass) - loss.class_weight * far / len(kin)


def naive(features: Embeddings, context: Context, loss: SBCL) -> Tensor:
    query, key = ({k: v.tolist() for k, v in context.batch[f"{s}_fields"].items()} for s in ("query", "key"))
    cosines, losses = features.query @ features.key.T, []
    for at in range(len(cosines)):
        there = anchor(list(cosines[at]), at, query, key, query["spread"][at], loss)
        back = anchor(list(cosines[:, at]), at, key, query, key["spread"][at], loss)
        losses.append((there + back) / 2)
    return torch.stack(losses)


def supcon(features: Embeddings, label: list[int], temperature: float) -> Tensor:
    scores = features.query @ features.key.T / temperature
    same = torch.tensor(label)[:, None] == torch.tensor(label)
    both = [-(table.log_softmax(1) * same).sum(1) / same.sum(1) for table in (scores, scores.T)]
    return sum(both) / 2


@pytest.mark.parametrize("extra", [((), (), ()), EXTRA])
@pytest.mark.parametrize("loss", [SBCL(), SBCL(temperature=0.5, class_weight=1.3)])
def test_equals_a_loop(loss, extra):
    features, told = embeddings(6, 6 + len(extra[0])), context(extra=extra)
    mine, reference = loss(features, told), naive(features, told, loss)
    assert mine.shape == (6,)
    torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    assert_same(mine.square().sum(), reference.square().sum(), features)


def test_one_subclass_a_class_without_the_second_term_is_supervised_contrast():
    features, loss = embeddings(6, 6), SBCL(class_weight=0.0)
    mine = loss(features, context(subclass=[0] * 6))
    assert_same(mine.sum(), supcon(features, LABEL, 0.1).sum(), features)


def test_each_row_its_own_subclass_is_info_nce_and_the_class_term():
    features, spread = embeddings(6, 6), [1.0] * 6
    mine = SBCL()(features, context(subclass=range(6), spread=spread))
    expected = supcon(features, list(range(6)), 0.1) + 0.25 * supcon(features, LABEL, 0.1)
    assert_same(mine.sum(), expected.sum(), features)


def test_an_unsplit_class_has_only_its_own_row_to_find_in_the_second_term():
    features, told = embeddings(4, 4), context([0] * 4, [0] * 4, [1.0] * 4)
    first, both = SBCL(class_weight=0.0)(features, told), SBCL()(features, told)
    torch.testing.assert_close(first, both)  # nothing else is left in the denominator


def test_the_second_denominator_has_no_other_row_of_the_subclass():
    features, told = embeddings(6, 6), context()
    second = (SBCL(class_weight=1.0)(features, told) - SBCL(class_weight=0.0)(features, told))[0]
    slope = gradients(second, features)[1].norm(dim=1)
    assert slope[1] < 1e-12 and (slope[[0, 2, 3, 4, 5]] > 1e-6).all()  # 1 is in the subclass of 0


def test_the_temperature_of_the_second_term_rises_with_the_spread():
    features = embeddings(6, 6)

    def evenness(spread: float) -> float:
        """How near the second term is to that of a uniform softmax over the five rows left to row 0."""
        told = context(spread=[spread] * 6)
        second = SBCL(class_weight=1.0)(features, told) - SBCL(class_weight=0.0)(features, told)
        return abs(float(second[0].detach()) - math.log(5))

    gaps = [evenness(spread) for spread in (1.0, 3.0, 10.0, 100.0)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] < 0.1


def test_the_order_of_rows_does_not_matter():
    features, order = embeddings(6, 6), torch.tensor([5, 2, 0, 4, 1, 3])
    moved = replace(features, query=features.query[order], key=features.key[order])
    fields = [[x[at] for at in order.tolist()] for x in (LABEL, SUBCLASS, SPREAD)]
    torch.testing.assert_close(SBCL()(moved, context(*fields)), SBCL()(features, context())[order])


def test_gradcheck_one_row_and_bf16():
    features, told = embeddings(4, 5, 3), context(LABEL[:4], SUBCLASS[:4], SPREAD[:4], ([1], [0], [1.0]))
    loss = SBCL(temperature=0.7)
    assert torch.autograd.gradcheck(
        lambda q, k: loss(replace(features, query=q, key=k), told), (features.query, features.key)
    )
    assert SBCL()(embeddings(1, 1), context([0], [0], [1.0])).tolist() == [0]
    small = loss(embeddings(4, 5, 3, dtype=torch.bfloat16), told)
    torch.testing.assert_close(small.double(), loss(features, told), atol=0.02, rtol=0.02)


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        SBCL(temperature=0)
    with pytest.raises(ValueError, match="class_weight must be >= 0, got -1"):
        SBCL(class_weight=-1)
