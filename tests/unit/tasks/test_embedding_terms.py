from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from tests.unit.ops.worlds import assert_same, batch, embeddings, losses_of
from vlalign.objectives.dcl import DCL
from vlalign.objectives.groco import GroCo
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.supervision.mixers.list_mix import ListMix
from vlalign.supervision.mixers.pair_mix import PairMix
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import EmbeddingTerm, Term, Width
from vlalign.types import Context, Embeddings, UserError

DATA = batch(range(5), range(5), concept=([0, 0, 1, 1, 2], [0, 0, 1, 1, 2]))


@dataclass(frozen=True, kw_only=True)
class Apart:
    """A loss of embeddings with a head: the distance that a learned map leaves between a pair, by concept."""

    fields = ("concept",)

    def head(self, dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, 3), nn.Tanh(), nn.Linear(3, dim))

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        with torch.device("meta"):
            module = self.head(features.query.shape[1])
        mapped = functional_call(module, dict(features.extras), (features.query,))
        concept = context.batch["query_fields"]["concept"]
        return (mapped - features.key).square().sum(-1) * (1 + concept) + context.step


@dataclass(frozen=True, kw_only=True)
class Taught:
    """A weighter with a head and a lesson: weights from a map of the embeddings, taught to tell the loss."""

    def head(self, dim: int) -> nn.Module:
        return nn.Linear(dim, 1)

    def told(self, context: Context) -> Tensor:
        features = context.features
        return (features.query @ features.extras["weight"].T + features.extras["bias"])[:, 0]

    def __call__(self, losses: Tensor, context: Context) -> Tensor:
        return self.told(context).detach().sigmoid()

    def lesson(self, losses: Tensor, context: Context) -> Tensor:
        return (self.told(context) - losses.detach()).square()


def with_heads(task: Align, features: Embeddings) -> tuple[Embeddings, dict[str, nn.Module]]:
    torch.manual_seed(0)
    heads = {name: head.double() for name, head in task.heads(features.query.shape[1]).items()}
    extras = {f"{name}.{key}": p for name, head in heads.items() for key, p in head.named_parameters()}
    return replace(features, extras=extras), heads


def total(task: Align, features: Embeddings, data: dict = DATA) -> Tensor:
    return task.loss(features, data, 3, 9).total


def test_an_embedding_term_is_summed_over_rows_and_learns_its_head():
    task = Align(
        targets=Identity(),
        terms=(Term(objective=InfoNCE(), scale=0.5),),
        embedding_terms=(EmbeddingTerm(objective=Apart(), scale=2.0), EmbeddingTerm(objective=Apart())),
    )
    features, heads = with_heads(task, embeddings(5, 5))
    assert len(heads) == 2 and not any("." in name for name in heads)
    contrast = [losses_of(InfoNCE(), features, DATA, Identity(), side).sum() for side in ("query", "key")]
    weights = 1 + DATA["query_fields"]["concept"]
    apart = [
        ((head(features.query) - features.key).square().sum(-1) * weights + 3).sum()
        for head in heads.values()
    ]
    reference = 0.5 * sum(contrast) / 2 + 2 * apart[0] + apart[1]
    assert_same(total(task, features), reference, features)
    for head in heads.values():
        for p in head.parameters():
            mine, other = (
                torch.autograd.grad(x, p, retain_graph=True)[0] for x in (total(task, features), reference)
            )
            torch.testing.assert_close(mine, other)
    parts = task.loss(features, DATA, 3, 9).parts
    assert [parts[name].item() for name in list(parts)[:2]] == pytest.approx([x.item() for x in apart])


def test_an_embedding_term_alone_reads_no_scale_and_asks_for_its_fields():
    task = Align(targets=Identity(), embedding_terms=(EmbeddingTerm(objective=Apart()),))
    assert not task.reads_scale and task.reads_fields == ("concept",)
    features, _ = with_heads(task, embeddings(5, 5))
    with pytest.raises(UserError, match="reads the field 'concept', which the query rows do not have"):
        total(task, features, batch(range(5), range(5)))
    with pytest.raises(ValueError, match="terms is empty"):
        Align(targets=Identity())


def test_a_weighter_learns_its_head_from_its_lesson():
    term = Term(objective=InfoNCE(), weighters=(Taught(),), weigh="direction")
    task = Align(targets=Identity(), terms=(term,))
    features, heads = with_heads(task, embeddings(5, 5))
    [head] = heads.values()
    reference = 0
    for side in ("query", "key"):
        losses = losses_of(InfoNCE(), features, DATA, Identity(), side)
        told = head(features.query)[:, 0]
        reference = (
            reference + (losses * told.detach().sigmoid() + (told - losses.detach()).square()).sum() / 2
        )
    assert_same(total(task, features), reference, features)
    mine, other = (
        torch.autograd.grad(x, head.weight, retain_graph=True)[0] for x in (total(task, features), reference)
    )
    torch.testing.assert_close(mine, other)
    parts = task.loss(features, DATA, 3, 9).parts  # what teaches is no part of what is told as the loss
    assert list(parts) == ["info_nce", next(iter(heads))]
    assert sum(parts.values()) == pytest.approx(reference.item())


def test_matryoshka_at_the_full_width_is_the_plain_loss():
    features = embeddings(5, 5, width=6)
    plain = Align(targets=Identity(), terms=(Term(objective=InfoNCE()),))
    whole = replace(plain, matryoshka=(Width(dim=6),))
    assert_same(total(whole, features), total(plain, features), features)


def test_matryoshka_is_the_weighted_sum_over_cut_embeddings():
    features = embeddings(5, 5, width=6)
    plain = Align(targets=Identity(), terms=(Term(objective=InfoNCE(), scale=0.5), Term(objective=Sigmoid())))
    task = replace(plain, matryoshka=(Width(dim=4), Width(dim=2, weight=0.3)))
    reference = 0
    for dim, weight in ((4, 1.0), (2, 0.3)):
        cut = replace(
            features,
            query=normalize(features.query[:, :dim], dim=-1),
            key=normalize(features.key[:, :dim], dim=-1),
        )
        reference = reference + weight * total(plain, cut)
    assert_same(total(task, features), reference, features)
    parts = task.loss(features, DATA, 3, 9).parts
    assert sum(0.5 * v if "sigmoid" not in k else v for k, v in parts.items()) == pytest.approx(
        reference.item()
    )


@pytest.mark.parametrize("mixer", [PairMix(hardest=3), ListMix(hardest=3)])
@pytest.mark.parametrize("objective", [InfoNCE(), DCL(), InfoNCE(temperature=0.1)])
def test_mixed_negatives_never_lower_the_loss(mixer, objective):
    for seed in range(5):
        features = embeddings(6, 6, seed=seed)
        data = batch(range(6), range(6))
        plain, mixed = (
            Align(targets=Identity(), terms=(Term(objective=objective, mixers=mixers),))
            for mixers in ((), (mixer,))
        )
        assert total(mixed, features, data) > total(plain, features, data)
        both = Align(targets=Identity(), terms=(Term(objective=objective, mixers=(mixer, mixer)),))
        assert total(both, features, data) > total(mixed, features, data)


@pytest.mark.parametrize("objective", [InfoNCE(label_smoothing=0.1), Sigmoid(), GroCo()])
def test_objectives_that_cannot_take_synthetic_negatives_say_so(objective):
    with pytest.raises(ValueError, match="cannot take synthetic negatives"):
        Term(objective=objective, mixers=(PairMix(),))


def test_a_width_and_a_scale_are_positive():
    with pytest.raises(ValueError, match="dim must be >= 1, got 0"):
        Width(dim=0)
    with pytest.raises(ValueError, match="weight must be > 0"):
        Width(dim=4, weight=0)
    with pytest.raises(ValueError, match="scale must be > 0"):
        EmbeddingTerm(objective=Apart(), scale=-1)


def test_a_weighter_sees_whole_embeddings_at_every_width():
    term = Term(objective=InfoNCE(), weighters=(Taught(),))
    task = Align(targets=Identity(), terms=(term,), matryoshka=(Width(dim=4), Width(dim=2)))
    features, _ = with_heads(task, embeddings(5, 5))
    assert torch.isfinite(total(task, features))


def test_a_weighter_that_learns_is_named_once():
    with pytest.raises(ValueError, match="learns, and is named twice"):
        Term(objective=InfoNCE(), weighters=(Taught(), Taught()))


def test_the_least_rows_of_a_batch_are_those_of_the_objective_that_needs_most():
    assert Align(targets=Identity(), terms=(Term(objective=InfoNCE()),)).least_rows == 1
    both = (Term(objective=GroCo(hardest=4)), Term(objective=InfoNCE()))
    assert Align(targets=Identity(), terms=both).least_rows == 5
