from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from tests.unit.ops.worlds import Largest, assert_same, batch, embeddings, gradients, logits, losses_of
from vlalign.objectives.dcl import DCL
from vlalign.objectives.info_nce import InfoNCE
from vlalign.objectives.sigmoid import Sigmoid
from vlalign.ops.reductions import Max
from vlalign.registry import OBJECTIVES, TASKS
from vlalign.supervision.selectors.false_negative import FalseNegative
from vlalign.supervision.targets.identity import Identity
from vlalign.tasks.align import Align
from vlalign.tasks.terms import Term
from vlalign.types import Context, Embeddings
from vlalign.weighters.focal import Focal

DATA = batch(range(5), range(5))


def align(*terms: Term | object, **fields) -> Align:
    named = tuple(term if isinstance(term, Term) else Term(objective=term) for term in terms)
    return Align(**({"targets": Identity(), "terms": named} | fields))


def total(task: Align, features: Embeddings, data: dict = DATA) -> Tensor:
    return task.loss(features, data, 0, 1).total


def test_one_term_is_the_mean_of_its_directions():
    features = embeddings(5, 5)
    labels = torch.arange(5)
    sums = [
        torch.nn.functional.cross_entropy(logits(features, s), labels, reduction="sum")
        for s in ("query", "key")
    ]
    assert_same(total(align(InfoNCE()), features), sum(sums) / 2, features)
    for direction, reference in zip(("query_to_key", "key_to_query"), sums, strict=True):
        assert_same(total(align(InfoNCE(), directions=(direction,)), features), reference, features)


def test_terms_add_up_by_scale_each_with_its_own_fields():
    features, data = embeddings(5, 5), batch(range(5), range(5), caption=([0, 1, 2, 1, 0], [0, 1, 2, 1, 0]))
    captioned, selector = Identity(same=("caption",)), FalseNegative(margin=0.0)
    task = align(
        Term(objective=InfoNCE(), scale=0.5),
        Term(objective=DCL(sigma=0.5), targets=captioned, directions=("key_to_query",)),
        Term(objective=Sigmoid(), scale=2.0, selectors=()),
        Term(objective=InfoNCE(temperature=0.1)),
        selectors=(selector,),
    )

    def part(objective, side, targets=Identity(), selectors=(selector,)):
        return losses_of(objective, features, data, targets, side, selectors).sum()

    reference = (
        0.5 * (part(InfoNCE(), "query") + part(InfoNCE(), "key")) / 2
        + part(DCL(sigma=0.5), "key", captioned)
        + 2 * part(Sigmoid(), "query", selectors=())
        + (part(InfoNCE(temperature=0.1), "query") + part(InfoNCE(temperature=0.1), "key")) / 2
    )
    assert_same(total(task, features, data), reference, features)
    parts = task.loss(features, data, 0, 1).parts
    assert list(parts) == ["info_nce", "dcl", "sigmoid", "info_nce_2"]
    assert not any(part.requires_grad for part in parts.values())
    torch.testing.assert_close(parts["dcl"], part(DCL(sigma=0.5), "key", captioned).detach())


@pytest.mark.parametrize("weigh", ["pair", "direction"])
def test_weights_belong_to_a_pair_or_to_its_direction(weigh):
    keys = [0, 80, 4, 1, 2, 81, 3]  # hard negatives among them, as where chunks were joined
    features, data = embeddings(5, 7), batch(range(5), keys)
    own = [keys.index(row) for row in range(5)]
    task = align(Term(objective=InfoNCE(), weighters=(Focal(gamma=2.0),), weigh=weigh))
    losses = [losses_of(InfoNCE(), features, data, Identity(), side) for side in ("query", "key")]
    losses[1] = losses[1][own]
    weights = [((1 - (-each).exp()) ** 2).detach() for each in losses]
    if weigh == "pair":
        weights = [sum(weights) / 2] * 2
    reference = sum((w * each).sum() for w, each in zip(weights, losses, strict=True)) / 2
    assert_same(total(task, features, data), reference, features)


def test_focal_with_gamma_zero_changes_nothing():
    features = embeddings(5, 5)
    weighted = align(Term(objective=InfoNCE(), weighters=(Focal(gamma=0.0),)))
    assert_same(total(weighted, features), total(align(InfoNCE()), features), features)


def test_several_weighters_multiply():
    features = embeddings(5, 5)
    one, two = Focal(gamma=1.0), Focal(gamma=2.0)
    both, sum_of_powers = (
        align(Term(objective=InfoNCE(), weighters=weighters, weigh="direction"))
        for weighters in ((one, two), (Focal(gamma=3.0),))
    )
    assert_same(total(both, features), total(sum_of_powers, features), features)


@given(st.permutations(range(6)), st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_rows_does_not_matter(query, key):
    features, data = embeddings(6, 6), batch(range(6), range(6))
    task = align(InfoNCE(label_smoothing=0.1), Sigmoid(), DCL(sigma=0.5))
    moved = replace(features, query=features.query[list(query)], key=features.key[list(key)])
    assert_same(total(task, moved, batch(query, key)), total(task, features, data), features)


def test_one_row_alone():
    features, data = embeddings(1, 1), batch([0], [0])
    assert total(align(InfoNCE(), DCL(sigma=0.5)), features, data) == 0
    assert total(align(Sigmoid()), features, data) > 0


def test_an_empty_share_of_the_batch_can_be_learned_from():
    features = embeddings(0, 0)
    task = align(Term(objective=InfoNCE(), weighters=(Focal(normalized=True),)), DCL(sigma=0.5), Sigmoid())
    loss = total(task, features, batch([], []))
    assert loss == 0 and all(slope.eq(0).all() for slope in gradients(loss, features))


@pytest.mark.parametrize("objectives", [(InfoNCE(),), (DCL(sigma=0.5),), (Sigmoid(),), None])
def test_nothing_is_as_large_as_the_table(objectives):
    features, rows = embeddings(96, 96), range(96)
    task = align(*(objectives or (InfoNCE(), DCL(), Sigmoid())), tile=(16, 24))
    with Largest() as largest:
        total(task, features, batch(rows, rows, caption=(rows, rows))).backward()
    assert 16 * 24 <= largest.numbers <= 96 * 4 * 2  # a tile, and embeddings or what is kept of rows


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (7, 4)])
def test_the_tile_changes_no_loss(tile):
    features, terms = embeddings(5, 5), (InfoNCE(), DCL(), Sigmoid())
    assert_same(total(align(*terms, tile=tile), features), total(align(*terms), features), features)


def test_captions_that_are_positive_are_not_pushed_apart():
    features = embeddings(4, 4)
    with torch.no_grad():
        features.key[2] = features.key[0]
    data = batch(range(4), range(4), caption=([0, 1, 0, 3], [0, 1, 0, 3]))
    pushed, kept = (
        torch.autograd.grad(total(align(Sigmoid(), targets=targets), features, data), features.key)[0]
        for targets in (Identity(), Identity(same=("caption",)))
    )
    toward = features.query[0]
    assert (kept[2] @ toward) < (pushed[2] @ toward)  # descent moves key 2 towards query 0


def test_what_the_loop_asks():
    task = align(InfoNCE())
    assert task.coupled and task.rows(DATA) == 5
    captioned = Term(objective=InfoNCE(), targets=Identity(same=("caption",)))
    assert align(InfoNCE(), captioned).reads_fields == ("row", "caption")
    assert task.reads_scale and align(Whole()).reads_scale
    assert not align(InfoNCE(temperature=0.1), DCL(sigma=1.0, temperature=0.1)).reads_scale


@dataclass(frozen=True, kw_only=True)
class Whole:
    """An objective from outside that reads whole rows."""

    margin: float = 1.0
    reductions = {}

    def __call__(self, rows):
        dense = rows.dense()
        best = dense.logits.masked_fill(~dense.targets, -torch.inf).amax(1)
        return (self.margin + dense.logits - best[:, None]).clamp(min=0).sum(1)


@dataclass(frozen=True, kw_only=True)
class EveryPair:
    """Targets that leave no negative."""

    all_positive = True
    query_fields = key_fields = ()

    def tile(self, query, key):
        raise NotImplementedError


def test_an_objective_from_outside_is_one_class():
    decoded = OBJECTIVES.decode({"name": f"{__name__}:Whole", "margin": 2.0})
    features = embeddings(5, 5)
    best = logits(features).diagonal()[:, None]
    reference = (2 + logits(features) - best).clamp(min=0).sum()
    assert_same(total(align(decoded, directions=("query_to_key",)), features), reference, features)


def test_a_recipe_decodes_to_the_same_task():
    recipe = {
        "name": "align",
        "directions": ["query_to_key"],
        "tile": [512, 1024],
        "targets": {"name": "identity", "same": ["caption", "concept"]},
        "selectors": [{"name": "false_negative", "margin": 0.2}],
        "terms": [
            {"objective": "info_nce", "weighters": [{"name": "focal", "gamma": 2.0}], "scale": 0.5},
            {
                "objective": {"name": "dcl", "sigma": 0.5},
                "targets": "identity",
                "directions": ["key_to_query"],
            },
        ],
    }
    assert TASKS.decode(recipe) == Align(
        directions=("query_to_key",),
        tile=(512, 1024),
        targets=Identity(same=("caption", "concept")),
        selectors=(FalseNegative(margin=0.2),),
        terms=(
            Term(objective=InfoNCE(), weighters=(Focal(gamma=2.0),), scale=0.5),
            Term(objective=DCL(sigma=0.5), targets=Identity(), directions=("key_to_query",)),
        ),
    )


def test_mistakes_of_a_recipe_are_told_together():
    wrong = {
        "name": "align",
        "targets": "identity",
        "terms": [{"objective": "info_nse"}, {"objective": "dcl", "scale": 0.0}],
    }
    with pytest.raises(ValidationError) as told:
        TASKS.decode(wrong)
    assert "Did you mean 'info_nce'?" in str(told.value) and "scale must be > 0" in str(told.value)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: align(), "terms is empty"),
        (lambda: align(InfoNCE(), tile=(0, 4)), r"tile must be two numbers of rows >= 1, got \[0, 4\]"),
        (lambda: align(InfoNCE(), directions=()), "directions must name one or both of query_to_key"),
        (lambda: align(Term(objective=DCL(), directions=("key_to_query",) * 2)), "directions must name"),
        (lambda: align(Term(objective=DCL(), scale=float("nan"))), "scale must be > 0 and finite, got nan"),
        (
            lambda: align(DCL(), targets=EveryPair()),
            "EveryPair make every pair positive, and dcl needs negatives",
        ),
        (
            lambda: align(Sigmoid(), selectors=(FalseNegative(),)),
            "sigmoid has one total .* false_negative selects",
        ),
        (lambda: Term(objective=Sigmoid(), weighters=(Focal(),)), "focal cannot weigh the rows of sigmoid"),
        (lambda: Term(objective=Whole(), weighters=(Focal(),)), "names no reduction 'positive'"),
    ],
)
def test_what_cannot_mean_anything_is_refused(make, told):
    with pytest.raises(ValueError, match=told):
        make()


def test_weighters_see_the_batch_and_the_step():
    seen = []

    @dataclass(frozen=True)
    class Spy:
        def __call__(self, losses: Tensor, context: Context) -> Tensor:
            seen.append((context.step, context.total_steps, context.batch["ids"], sorted(context.rows)))
            return torch.full_like(losses, 3.0)

    features = embeddings(5, 5)
    tripled = align(Term(objective=InfoNCE(), weighters=(Spy(),))).loss(features, DATA, 4, 9).total
    assert_same(tripled, 3 * total(align(InfoNCE()), features), features)
    assert seen == [(4, 9, DATA["ids"], ["all", "positive"])] * 2


def test_a_maximum_can_be_learned_from():
    @dataclass(frozen=True)
    class Hardest:
        reductions = {"best": Max()}

        def __call__(self, rows):
            return rows["best"]

    features = embeddings(5, 5)
    reference = sum(logits(features, side).amax(1).sum() for side in ("query", "key")) / 2
    assert_same(total(align(Hardest()), features), reference, features)
