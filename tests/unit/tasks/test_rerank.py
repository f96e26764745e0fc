"""Whatever ranks goes with the task rerank, or is refused with a sentence; its loss is what it says."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.methods import component
from vlalign.registry import ANSWER_OBJECTIVES, OBJECTIVES, TASKS, WEIGHTERS, encode
from vlalign.types import PairScores, UserError

GROUP = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 3])
LABEL = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0, 0, 1])
REFUSED = ("compares the rows of a batch with each other", "cannot weigh the rows of")


def leaves(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(len(GROUP), generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(3)
    ]


def scored(yes, no, total=None):
    return PairScores(
        yes - no, yes, no, None if total is None else torch.logaddexp(total, torch.logaddexp(yes, no))
    )


def batch(places=None, **numbers):
    places = torch.arange(len(GROUP)) if places is None else places
    queries, group = GROUP[places].unique(return_inverse=True)
    fields = {"label": LABEL, "teacher": LABEL + torch.arange(len(LABEL)) / 50, **numbers}
    return {
        "group": group,
        "ids": [f"q{query}" for query in queries],
        "query_fields": {"row": queries},
        "key_fields": {name: x[places] for name, x in fields.items()},
    }


def task(**fields):
    return TASKS.decode({"name": "rerank", **fields})


def plain(registry, name):
    return encode(component(registry, name), component=True)


@pytest.mark.parametrize("of", ["scores", "yes"])
@pytest.mark.parametrize("weighter", ["", *WEIGHTERS.names()])
@pytest.mark.parametrize("objective", OBJECTIVES.names())
def test_any_objective_with_any_weighter(objective, weighter, of):
    term = {"objective": plain(OBJECTIVES, objective), "of": of}
    if objective == "groco":
        term["objective"]["hardest"] = 1
    if weighter:
        term["weighters"] = [plain(WEIGHTERS, weighter)]
    try:
        made = task(terms=[term])
    except ValidationError as error:
        assert any(sentence in error.errors()[0]["msg"] for sentence in REFUSED)
        assert weighter in ("dynamic", "focal", "storm", "uncertainty") or objective == "mann_whitney"
        return
    yes, no, _ = leaves()
    losses = []
    for step in (1, 2, 3):
        loss = made.loss(scored(yes, no), batch(), step, 3).total / 4
        slopes = torch.autograd.grad(loss, (yes, no), allow_unused=True, materialize_grads=True)
        assert all(slope.isfinite().all() for slope in slopes)
        yes, no = (
            (x - 0.05 * slope).detach().requires_grad_() for x, slope in zip((yes, no), slopes, strict=True)
        )
        losses.append(loss.item())
    assert losses[2] < losses[0]


@pytest.mark.parametrize("objective", ANSWER_OBJECTIVES.names())
def test_any_answer_objective_beside_a_term_over_scores(objective):
    made = task(answer_terms=[{"objective": objective}], terms=[{"objective": "info_nce", "scale": 0.5}])
    yes, no, _ = leaves()
    ratings = torch.stack([yes, no], 1)[..., None] * torch.linspace(0, 1, 10)
    loss = made.loss(replace(scored(yes, no), ratings=ratings), batch(), 1, 2)
    assert objective in loss.parts and "info_nce" in loss.parts
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(loss.total, (yes, no)))


def test_what_an_objective_notes_is_logged_and_teaches_nothing():
    plain = task(answer_terms=[{"objective": {"name": "weight_direction"}}])
    yes, no, _ = leaves()
    loss = plain.loss(scored(yes, no), batch(), 1, 2)
    assert set(loss.parts) == {
        f"weight_direction{end}" for end in ("", ".positive_weight", ".negative_weight")
    }
    assert loss.total.item() == pytest.approx(loss.parts["weight_direction"].item())


def test_queries_cut_into_chunks_add_up():
    made = task(terms=[{"objective": "list_net"}], answer_terms=[{"objective": "yes_no"}])
    yes, no, _ = leaves()
    whole = made.loss(scored(yes, no), batch(), 1, 2).total
    parts = [torch.tensor([0, 1, 2, 7, 8]), torch.tensor([6, 3, 5, 4, 9])]
    apart = sum(made.loss(scored(yes[at], no[at]), batch(at), 1, 2).total for at in parts)
    torch.testing.assert_close(whole, apart)


def test_the_offset_is_part_of_the_score_and_of_the_yes():
    first = torch.linspace(-2, 2, len(GROUP)).double()
    yes, no, _ = leaves()
    for term in (
        {"terms": [{"objective": "info_nce", "of": "yes"}]},
        {"answer_terms": [{"objective": "yes_no"}]},
    ):
        own = task(**term, offset={"field": "first", "scale": 0.5}).loss(
            scored(yes, no), batch(first=first), 1, 2
        )
        by_hand = task(**term).loss(scored(yes + 0.5 * first, no), batch(), 1, 2)
        torch.testing.assert_close(own.total, by_hand.total)


def test_soft_targets_are_read_where_they_are_named():
    term = {"objective": "kl", "targets": {"name": "given", "field": "teacher"}}
    made = task(terms=[term], answer_terms=[{"objective": "yes_no"}], offset={"field": "first"})
    assert made.reads_numbers == ("teacher", "label", "first")
    with pytest.raises(UserError, match="read the field 'teacher', which the candidates do not have"):
        data = batch(first=LABEL)
        del data["key_fields"]["teacher"]
        made.loss(scored(*leaves()[:2]), data, 1, 2)


def test_the_whole_vocabulary_is_asked_for_and_has_no_offset():
    term = {"objective": {"name": "yes_no", "over": "vocabulary"}}
    assert (
        task(answer_terms=[term]).reads_vocabulary and not task(terms=[{"objective": "kl"}]).reads_vocabulary
    )
    assert task(answer_terms=[term]).loss(scored(*leaves()), batch(), 1, 2).total.isfinite()
    with pytest.raises(ValidationError, match="over the whole vocabulary there is no place for it"):
        task(answer_terms=[term], offset={"field": "first"})


def test_bf16_scores_are_near_fp64():
    made = task(terms=[{"objective": "rank_net"}], answer_terms=[{"objective": "yes_no"}])
    wide, short = (
        made.loss(scored(*leaves(dtype)[:2]), batch(), 1, 2).total
        for dtype in (torch.float64, torch.bfloat16)
    )
    assert short.dtype == torch.float32
    assert short.item() == pytest.approx(wide.item(), rel=0.02)


def test_a_task_without_terms_is_refused():
    with pytest.raises(ValidationError, match="terms and answer_terms are empty"):
        task()
