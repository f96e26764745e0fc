import pytest

from tests.unit.evals.fakes import COLOURS, ColourModel, Rows, Spec
from vlalign.evals.evaluators.zero_shot import ZeroShot
from vlalign.types import DataError, Limits


def source(labels):
    names = ["red", "green", "blue", "blue"]
    rows = [
        {"image": COLOURS[n], "captions": ("?",), "label": label}
        for n, label in zip(names, labels, strict=True)
    ]
    return Rows(rows)


def measure(labels, **fields):
    return ZeroShot(data=Spec(source(labels)), dataset="fake", **fields)(ColourModel(), Limits())[0]


def test_names_come_from_the_data_unless_given():
    row = measure(["red", "green", "blue", "blue"])
    assert row.task == "zeroshot_classification"
    assert row.metrics == {"acc1": 1.0, "acc5": 1.0, "mean_per_class_recall": 1.0}
    assert row.chance["acc1"] == 0.5 and row.chance["acc1_uniform"] == pytest.approx(1 / 3)
    assert {entry["class"]: entry["rows"] for entry in row.exhibits["classes"]} == {
        "blue": 2,
        "green": 1,
        "red": 1,
    }


def test_labels_may_be_numbers_of_the_names():
    row = measure(
        ["1", "0", "2", "3"], classes=("green", "red", "blue", "white"), templates=("{} thing", "a {c}!")
    )
    assert row.metrics["acc1"] == 0.75 and row.metrics["acc5"] == 1.0
    assert [entry["recall"] for entry in row.exhibits["classes"]] == [1.0, 1.0, 1.0, 0.0]


def test_a_clip_benchmark_folder_gives_names_and_templates(tmp_path):
    (tmp_path / "classnames.txt").write_text("green\nred\nblue\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a photo of {c}\n")
    row = measure(["1", "0", "2", "2"], folder=str(tmp_path))
    assert row.metrics["acc1"] == 1.0 and row.exhibits["templates"] == ["a photo of {c}"]
    with pytest.raises(DataError, match="cannot be read: No such file"):
        measure(["1", "0", "2", "2"], folder=str(tmp_path / "none"))


def test_a_label_that_is_no_class_is_told():
    with pytest.raises(DataError, match="label '7' is none of the 2 class names"):
        measure(["0", "1", "7", "1"], classes=("red", "green"))
    with pytest.raises(ValueError, match="template 'photo' has no place"):
        measure(["red", "green", "blue", "blue"], templates=("photo",))
