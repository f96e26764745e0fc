import pytest

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.category_precision import CategoryPrecision
from vlalign.types import DataError, Limits


def source(labels):
    """Pictures of the colours that are named first, each labelled with what is named second."""
    return Rows([{"image": COLOURS[seen], "captions": ("?",), "label": label} for seen, label in labels])


def measure(labels, **fields):
    return CategoryPrecision(data=Spec(source(labels)), dataset="fake", **fields)(ColourModel(), Limits())[0]


TRUE = [(name, name) for name in ("red", "green") for _ in range(3)]


def test_a_picture_finds_its_category_and_never_itself():
    row = measure(TRUE, k=(1, 2, 5))
    assert (row.dataset, row.task) == ("fake", "category_retrieval")
    assert list(row.metrics) == [f"image_to_image_P@{k}" for k in (1, 2, 5)]
    assert list(row.metrics.values()) == pytest.approx([1, 1, 2 / 5])
    assert row.chance == {f"image_to_image_P@{k}": pytest.approx(2 / 5) for k in (1, 2, 5)}
    alone = measure([("red", "a"), ("green", "a"), ("red", "b"), ("green", "b")], k=(1,))
    assert alone.metrics["image_to_image_P@1"] == 0  # its twin is of the other category; it is no help itself


def test_a_text_finds_the_category_that_it_names():
    row = measure(TRUE, k=(3, 6, 50), query="text", templates=("{}", "a {c} thing", "{c}, red, green"))
    assert row.metrics["text_to_image_P@3"] == pytest.approx((1 + 1 + 0.5) / 3)  # the last tells none apart
    assert row.metrics["text_to_image_P@6"] == row.metrics["text_to_image_P@50"] == 0.5
    assert set(row.chance.values()) == {0.5}


def test_categories_without_a_picture_to_find_ask_nothing():
    row = measure([*TRUE, ("blue", "blue")], k=(1,))
    assert row.metrics["image_to_image_P@1"] == 1 and row.chance["image_to_image_P@1"] == pytest.approx(2 / 6)
    named = measure(TRUE, k=(1,), query="text", classes=("red", "green", "blue"))
    assert named.metrics["text_to_image_P@1"] == 1
    with pytest.raises(DataError, match="no category of field 'label' has two pictures"):
        measure([("red", "red"), ("blue", "blue")])


def test_labels_may_be_numbers_of_the_names():
    numbered = [("red", "1"), ("red", "1"), ("green", "0")]
    row = measure(numbered, k=(2,), query="text", classes=("green", "red"))
    assert row.metrics["text_to_image_P@2"] == pytest.approx((1 + 1 / 2) / 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("every", -1), ("block", 0), ("k", ()), ("k", (5, 0)), ("classes", ()), ("templates", ())],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=f"^{field} must "):
        CategoryPrecision(data=Spec(source(TRUE)), dataset="d", **{field: value})
