from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.unit.objectives.embedding.learned import context, in_bf16
from tests.unit.ops.worlds import assert_same, embeddings, gradients
from vlalign.objectives.embedding.self_training import SelfTraining, firsts
from vlalign.recipe.decode import load_recipe
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import EmbeddingTerm
from vlalign.train.ema import Average, with_momentum
from vlalign.types import Embeddings, RecipeError

NAMES = [7, 3, 7, 5, 3, 9, 5, 2]  # of the keys; the last two are other processes' or nobody's
TEACHER = replace(made := embeddings(6, 8, seed=1), query=made.query.detach(), key=made.key.detach())


def at(names=NAMES, teacher=TEACHER, **fields):
    """A step of which the averaged weights have made other unit rows."""
    rows = {"query": teacher.query, "key": teacher.key}
    return context(key_fields={"caption": torch.tensor(names)}, momentum=rows, **fields)


def naive(features: Embeddings, names=NAMES, teacher=TEACHER, threshold: float = 0.5) -> Tensor:
    losses = []
    columns = [at for at, name in enumerate(names) if name not in names[:at]]
    for i in range(len(features.query)):
        told = [float(features.scale.detach() * teacher.query[i] @ teacher.key[j]) for j in columns]
        odds = [torch.tensor(each).double().exp().item() for each in told]
        best = max(range(len(columns)), key=lambda n: odds[n])
        if odds[best] / sum(odds) > threshold:
            own = [features.scale[0] * (features.query[i] * features.key[j]).sum() for j in columns]
            losses.append(sum(each.exp() for each in own).log() - own[best])
        else:
            losses.append(0 * features.query[i].sum())
    return torch.stack(losses)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7])
def test_equals_a_loop(threshold):
    features = embeddings(6, 8)
    mine = SelfTraining(threshold=threshold)(features, at())
    reference = naive(features, threshold=threshold)
    tell = torch.arange(1, 7).double()
    assert_same((mine * tell).sum(), (reference * tell).sum(), features)
    torch.testing.assert_close(mine, reference, atol=1e-10, rtol=1e-10)
    learns = int((mine != 0).sum())
    assert learns == {0.0: 6, 0.3: 6, 0.5: 5, 0.7: 2}[threshold]


def test_gradcheck_by_rows_and_multiplier():
    features = embeddings(6, 8)
    loss = SelfTraining(threshold=0.4)
    assert torch.autograd.gradcheck(
        lambda q, k, s: loss(replace(features, query=q, key=k, scale=s), at()),
        (features.query, features.key, features.scale),
    )


@pytest.mark.parametrize("threshold", [1.0, 2.0])
def test_from_one_on_nothing_is_learned_however_sure_the_teacher_is(threshold):
    features = embeddings(6, 8)
    sure = replace(TEACHER, query=TEACHER.key[:6].detach())
    for scale in (7.0, 1e6):  # the second: probabilities of exactly 1
        features = replace(features, scale=torch.tensor([scale], dtype=torch.float64, requires_grad=True))
        loss = SelfTraining(threshold=threshold)(features, at(teacher=sure))
        assert loss.tolist() == [0] * 6
        assert all(x.eq(0).all() for x in gradients(loss.sum(), features))
        some = SelfTraining()(features, at(teacher=sure))
        assert some.isfinite().all() and (some > 0).any()


def test_the_teacher_has_no_gradient_and_is_asked_for():
    assert SelfTraining().momentum and SelfTraining().reads_scale
    teacher = embeddings(6, 8, seed=1)
    loss = SelfTraining(threshold=0.0)(embeddings(6, 8), at(teacher=teacher)).sum()
    found = torch.autograd.grad(loss, [teacher.query, teacher.key], allow_unused=True)
    assert found == (None, None)


def test_a_name_that_stands_often_is_one_and_permuting_rows_permutes_losses():
    features, loss = embeddings(6, 8), SelfTraining(threshold=0.0)
    whole = loss(features, at())
    once = [0, 1, 3, 5, 7]
    few = replace(features, key=features.key[once])
    told = at([NAMES[n] for n in once], replace(TEACHER, key=TEACHER.key[once]))
    torch.testing.assert_close(loss(few, told), whole)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved, taught = (replace(each, query=each.query[order]) for each in (features, TEACHER))
    torch.testing.assert_close(loss(moved, at(teacher=taught)), whole[order])


def test_first_places_are_those_of_a_loop():
    labels = [4, 4, -2, 9, -2, 4, 0]
    wanted = {labels.index(each) for each in labels}
    found = firsts(torch.tensor(labels)).tolist()
    assert set(found) == wanted and [labels[n] for n in found] == sorted(set(labels))
    assert firsts(torch.tensor([5])).tolist() == [0]


def test_a_batch_of_one_name_teaches_nothing():
    features = embeddings(6, 8)
    loss = SelfTraining()(features, at([3] * 8))
    assert loss.tolist() == [0] * 6 and all(x.isfinite().all() for x in gradients(loss.sum(), features))


def test_bf16():
    features, teacher = embeddings(16, 16, 8), embeddings(16, 16, 8, seed=1)
    rounded = in_bf16(teacher)
    exact = replace(teacher, query=rounded.query.double(), key=rounded.key.double())
    told = at(range(16), rounded), at(range(16), exact)
    loss = SelfTraining(threshold=0.2)(in_bf16(features), told[0])
    assert loss.dtype == torch.float32
    wanted = SelfTraining(threshold=0.2)(features, told[1])
    torch.testing.assert_close(loss.double(), wanted, rtol=0.05, atol=0.05)


class Pair(nn.Module):
    """Pictures of numbers through a learned map, names as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4, bias=False)

    def forward(self, batch):
        rows = nn.functional.normalize(self.map(batch["query"]), dim=1)
        return Embeddings(rows, batch["key"], torch.tensor([20.0]), torch.tensor([0.0]), {})


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_teacher_of_decay_0_is_the_model_and_of_decay_1_stays_where_it_was(decay):
    torch.manual_seed(0)
    model = Pair()
    average, before = Average(model, decay), model.map.weight.detach().clone()
    made = embeddings(6, 6, dtype=torch.float32)
    labels = {"caption": torch.arange(6)}
    chunk = {"query": made.query.detach(), "key": made.key.detach(), "ids": [*"abcdef"]}
    chunk |= {"query_fields": labels, "key_fields": labels}
    task = Align(targets=Identity(), embedding_terms=(EmbeddingTerm(objective=SelfTraining(threshold=0.0)),))
    with torch.no_grad():
        model.map.weight.copy_(torch.randn(4, 4))
    average.update(10**9)  # long after what comes first is forgotten
    [told] = with_momentum(average, model, [chunk])
    loss = task.loss(model(chunk), told, 1, 2).total
    weight = model.map.weight if decay == 0 else before
    rows = nn.functional.normalize(chunk["query"] @ weight.T, dim=1)
    name = (20 * rows @ chunk["key"].T).argmax(1)
    own = 20 * model(chunk).query @ chunk["key"].T
    torch.testing.assert_close(loss, nn.functional.cross_entropy(own, name, reduction="sum"))


def test_ranges():
    with pytest.raises(ValueError, match="threshold must be >= 0, got -1"):
        SelfTraining(threshold=-1)


def test_a_whole_picture_is_for_a_teacher_alone():
    assert load_recipe("recipes/tiny/s3a.yaml").data.augment.teacher == "whole"
    with pytest.raises(RecipeError, match="data.augment.teacher: nothing in the task compares with averaged"):
        load_recipe("recipes/tiny/clip.yaml", ["data.augment.teacher=whole"])
