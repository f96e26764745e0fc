import time
from collections import Counter

import pytest

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.linear_probe import LinearProbe, stratified
from vlalign.types import DataError, Limits


def source(counts):
    rows = [
        {"image": COLOURS[n], "captions": ("?",), "label": n}
        for n, times in counts.items()
        for _ in range(times)
    ]
    return Rows(rows)


def test_a_separable_field_is_learned_and_measured_on_held_out_rows():
    data = Spec(source({"red": 10, "green": 5, "blue": 1}))
    row = LinearProbe(data=data, dataset="fake")(ColourModel(), Limits())[0]
    assert row.task == "linear_probe" and row.metrics["acc1"] == 1.0
    assert row.chance["acc1"] == pytest.approx(
        2 / 3
    )  # two red and one green are held out, red is the majority


def test_a_test_source_is_measured_whole():
    data, test = Spec(source({"red": 3, "green": 2})), Spec(source({"green": 4, "red": 1}))
    row = LinearProbe(data=data, test=test, dataset="fake")(ColourModel(), Limits())[0]
    assert row.metrics["acc1"] == 1.0 and row.chance["acc1"] == pytest.approx(0.2)
    assert row.exhibits["test_rows"]["used"] == 5
    strange = LinearProbe(data=data, test=Spec(source({"red": 1, "blue": 3})), dataset="fake")
    missed = strange(ColourModel(), Limits())[0]  # blue was never learnt
    assert missed.metrics["acc1"] == missed.metrics["acc5"] == missed.chance["acc5"] == 0.25


def test_classes_of_few_fitted_rows_are_told_apart():
    data, test = (
        Spec(source({"red": 9, "green": 4, "blue": 1})),
        Spec(source({"red": 1, "green": 1, "blue": 2})),
    )
    row = LinearProbe(data=data, test=test, dataset="fake", shots=(2, 5))(ColourModel(), Limits())[0]
    told = {name: row.metrics[f"mean_per_class_recall_{name}"] for name in ("many", "medium", "few")}
    assert told["many"] == told["medium"] == 1.0
    assert sum(told.values()) / 3 == pytest.approx(row.metrics["mean_per_class_recall"])
    assert row.chance["mean_per_class_recall_many"] == 1.0 and row.chance["mean_per_class_recall_few"] == 0
    plain = LinearProbe(data=data, test=test, dataset="fake")(ColourModel(), Limits())[0]
    assert set(row.metrics) - set(plain.metrics) == {f"mean_per_class_recall_{name}" for name in told}


def test_data_that_a_probe_cannot_learn_from_is_told():
    with pytest.raises(DataError, match="has one value, 'red'"):
        LinearProbe(data=Spec(source({"red": 2})), dataset="fake")(ColourModel(), Limits())
    with pytest.raises(DataError, match="has the two rows that a holdout needs"):
        LinearProbe(data=Spec(source({"red": 1, "blue": 1})), dataset="fake")(ColourModel(), Limits())


def test_the_split_is_stratified_and_repeatable():
    labels = [*"aaaaaaaaaabbbbbccd"]
    held = stratified(labels, 0.2, seed=3)
    assert Counter(label for label, out in zip(labels, held, strict=True) if out) == {"a": 2, "b": 1, "c": 1}
    assert held == stratified(labels, 0.2, seed=3) != stratified(labels, 0.2, seed=4)


def test_a_split_of_many_classes_is_quick():
    labels = [str(row % 2000) for row in range(40_000)]
    start = time.perf_counter()
    held = stratified(labels, 0.2, seed=0)
    assert sum(held) == 8000 and time.perf_counter() - start < 1  # a pass for each class takes several


class Far(ColourModel):
    """One of a few pictures lies far on the wrong side; of many, none."""

    def encode_image(self, images):
        rows = super().encode_image(images)
        rows[-1] *= -1e20 if len(rows) < 10 else 1
        return rows


@pytest.mark.parametrize("names", ["red green", "red green blue"])
def test_a_far_outlier_is_one_mistake(names):
    data, test = (Spec(source(dict.fromkeys(names.split(), rows))) for rows in (6, 2))
    row = LinearProbe(data=data, test=test, dataset="fake")(Far(), Limits())[0]
    assert row.metrics["acc1"] == pytest.approx(1 - 1 / (2 * len(names.split())))
