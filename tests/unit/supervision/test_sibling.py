import math

import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import assert_same, batch, embeddings, logits, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.selectors.same_label import SameLabel
from vlalign.supervision.selectors.sibling import Sibling
from vlalign.supervision.targets.identity import Identity

LABELS, FAMILIES = [0, 1, 1, 2, 3, 4], [0, 0, 0, 0, 1, 1]


def world() -> dict:
    data = batch(range(6), range(6))
    for side in ("query_fields", "key_fields"):
        data[side] |= {"label": torch.tensor(LABELS), "category": torch.tensor(FAMILIES)}
    return data


def omega(kappa: float) -> Tensor:
    """One pair at a time, as the formula has it: more where the family is the same and the label not."""
    table = torch.ones(6, 6, dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            if FAMILIES[i] == FAMILIES[j] and LABELS[i] != LABELS[j]:
                table[i, j] = 1 + kappa
    return table


@pytest.mark.parametrize("side", ["query", "key"])
@pytest.mark.parametrize("kappa", [0.5, 1.0, 3.0])
def test_equals_a_loop_but_for_a_constant(side, kappa):
    features, data = embeddings(6, 6), world()
    mine = losses_of(InfoNCE(), features, data, Identity(), side, (Sibling(kappa=kappa),))
    scores = logits(features, side)
    losses = (omega(kappa) * scores.exp()).sum(1).log() - scores.diagonal()
    torch.testing.assert_close(mine + math.log1p(kappa), losses)
    assert_same(mine.sum() + 6 * math.log1p(kappa), losses.sum(), features)


def test_kappa_zero_is_info_nce():
    features, data = embeddings(6, 6), world()
    plain = losses_of(InfoNCE(), features, data, Identity())
    weighed = losses_of(InfoNCE(), features, data, Identity(), selectors=(Sibling(kappa=0.0),))
    assert_same(weighed.sum(), plain.sum(), features)


def test_siblings_are_pushed_more_and_others_less():
    """A key is pushed from a query by the derivative of the loss by their score, the product of both rows."""
    features, data, pushed = embeddings(6, 6), world(), []
    for kappa in (0.0, 1.0):
        losses = losses_of(InfoNCE(), features, data, Identity(), "query", (Sibling(kappa=kappa),))
        rows = [torch.autograd.grad(each, features.key, retain_graph=True)[0] for each in losses]
        pushed.append(torch.stack(rows).norm(dim=2))  # [q, k]: a loss meets a key by their score alone
    sibling = omega(1.0) > 1
    other = ~sibling & ~torch.eye(6, dtype=torch.bool)
    assert (pushed[1][sibling] > pushed[0][sibling]).all()
    some = other & sibling.any(1, keepdim=True)
    assert some.any() and (pushed[1][some] < pushed[0][some]).all()


def test_the_same_label_counts_once_or_is_left_out():
    features, data = embeddings(6, 6), world()
    out = (Sibling(), SameLabel(field="label"))
    mine = losses_of(InfoNCE(), features, data, Identity(), selectors=out)
    scores, weight = logits(features, "query"), omega(1.0)
    weight[1, 2] = weight[2, 1] = 0
    losses = (weight * scores.exp()).sum(1).log() - scores.diagonal()
    torch.testing.assert_close(mine + math.log(2), losses)


def test_a_positive_of_another_label_is_no_sibling():
    fields = {"label": torch.tensor([[0], [1]])[..., None], "category": torch.zeros(2, 1, 1)}
    column = {"label": torch.tensor([[0, 1]]), "category": torch.zeros(1, 2)}
    row = {name: x[:, :, 0] for name, x in fields.items()}
    none, every = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    assert Sibling().tile(row, column, torch.zeros(2, 2), none).tolist() == [[0.5, 1], [1, 0.5]]
    assert Sibling().tile(row, column, torch.zeros(2, 2), every).eq(0.5).all()


@pytest.mark.parametrize("kappa", [-1.0, math.inf, math.nan])
def test_mistakes_are_sentences(kappa):
    with pytest.raises(ValueError, match="kappa must be >= 0 and finite"):
        Sibling(kappa=kappa)
