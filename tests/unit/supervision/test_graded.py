import pytest
import torch
from torch import Tensor

from tests.unit.ops.worlds import batch, embeddings, logits, losses_of
from vlalign.objectives.info_nce import InfoNCE
from vlalign.supervision.targets.graded import Graded

LABELS = {"row": [1, 2, 3, 4], "category": [0, 0, 0, 1], "subcategory": [5, 5, 6, 7]}
NUMBERS = [0.0, 0.25, 0.3, 1.0]


def relevance(targets: Graded, **fields: list) -> Tensor:
    query = {name: torch.tensor(fields[name])[:, None] for name in targets.query_fields}
    key = {name: torch.tensor(fields[name])[None] for name in targets.key_fields}
    return targets.tile(query, key)


@pytest.mark.parametrize("levels", [("category",), ("category", "subcategory")])
def test_levels_equal_a_loop(levels):
    found = relevance(Graded(levels=levels), **LABELS)
    for query in range(4):
        for key in range(4):
            matches = sum(LABELS[name][query] == LABELS[name][key] for name in levels) + (query == key)
            assert float(found[query, key]) == pytest.approx(matches / (len(levels) + 1))


def test_only_the_own_row_has_all():
    found = relevance(Graded(levels=("category", "subcategory")), **LABELS)
    assert torch.equal(found == 1, torch.eye(4).bool()) and (found >= 0).all()
    assert found[0, 1] > found[0, 2] > found[0, 3] == 0


@pytest.mark.parametrize("span", [0.5, 1.0])
def test_numbers_equal_a_loop(span):
    found = relevance(Graded(value="value", span=span), value=NUMBERS)
    for query in range(4):
        for key in range(4):
            near = max(0.0, 1 - abs(NUMBERS[query] - NUMBERS[key]) / span)
            assert float(found[query, key]) == pytest.approx(near)
    assert found.diagonal().eq(1).all()


def test_adding_a_number_to_all_changes_nothing():
    targets = Graded(value="value")
    moved = relevance(targets, value=[x + 3 for x in NUMBERS])
    torch.testing.assert_close(moved, relevance(targets, value=NUMBERS))


def test_contrast_weighs_keys_by_their_grade():
    features, targets = embeddings(4, 4), Graded(levels=("category", "subcategory"))
    rows = LABELS["row"]
    data = batch(rows, rows, **{name: (x, x) for name, x in LABELS.items() if name != "row"})
    grade = relevance(targets, **LABELS).double()
    log_p = logits(features).log_softmax(1)
    expected = -(grade * log_p).sum(1) / grade.sum(1)
    torch.testing.assert_close(losses_of(InfoNCE(), features, data, targets), expected, atol=1e-6, rtol=1e-6)


def test_it_reads_what_it_names():
    labelled = Graded(levels=("category",))
    assert labelled.query_fields == labelled.key_fields == ("row", "category")
    assert Graded(value="price").key_fields == ("price",)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, r"got levels \[\] and value None; name one kind"),
        ({"levels": ("a",), "value": "b"}, r"got levels \['a'\] and value b"),
        ({"levels": ("a", "a")}, "each field once"),
        ({"levels": ("row",)}, "not the row"),
        ({"value": "a", "span": 0.0}, "span must be > 0, got 0.0"),
    ],
)
def test_ranges(fields, told):
    with pytest.raises(ValueError, match=told):
        Graded(**fields)
