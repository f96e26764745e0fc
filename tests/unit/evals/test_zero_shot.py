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


def test_rare_and_frequent_classes_of_the_training_data_are_told_apart():
    trained = Spec(
        Rows([{"image": None, "label": n} for n in ["blue"] * 5 + ["red"] * 3 + ["green", "white"]])
    )
    row = measure(["red", "green", "blue", "red"], counts=trained, shots=(2, 4))  # one blue is said to be red
    assert row.metrics["mean_per_class_recall_many"] == 1.0
    assert row.metrics["mean_per_class_recall_medium"] == 0.5
    assert row.metrics["mean_per_class_recall_few"] == 1.0
    assert row.metrics["mean_per_class_recall"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert row.chance["mean_per_class_recall_medium"] == 1.0 and row.chance["mean_per_class_recall_few"] == 0
    assert set(row.chance) - set(row.metrics) == {"acc1_uniform", "acc5_uniform"}
    never = Spec(Rows([{"image": None, "label": "blue"}] * 9))
    unseen = measure(["red", "green", "blue", "red"], counts=never, shots=(2, 4)).metrics
    assert unseen["mean_per_class_recall_few"] == 0.75 and "mean_per_class_recall_medium" not in unseen


def test_counts_go_by_the_labels_of_both_sets():
    numbers = Spec(Rows([{"image": None, "label": n} for n in "1110"]))
    row = measure(["1", "0", "2", "2"], classes=("green", "red", "blue"), counts=numbers, shots=(1, 2))
    groups = ("many", "medium", "few")  # 1 thrice, 0 once, 2 never
    assert all(row.metrics[f"mean_per_class_recall_{name}"] == 1.0 for name in groups)
    named = Spec(Rows([{"image": None, "label": n} for n in ["red ", "red", "red", "green", "white"]]))
    asked = {"classes": ("green", "red", "blue"), "shots": (1, 2)}
    assert measure(["1", "0", "2", "2"], counts=named, **asked).metrics == row.metrics
    assert measure(["red", "green", "blue", "blue"], counts=numbers, **asked).metrics == row.metrics
    others = Spec(Rows([{"image": None, "label": n} for n in ("n01", "n02", "7")]))
    with pytest.raises(DataError, match="^counts: none of 3 labels, 'n01', 'n02', '7' and so on, is one of"):
        measure(["1", "0", "2", "2"], counts=others, **asked)
    nameless = Spec(Rows([{"image": None, "label": "red"}, {"image": None, "kind": "red"}]))
    with pytest.raises(DataError, match="1 of 2 rows have no field 'label'; the first has id, label"):
        measure(["red", "green", "blue", "blue"], counts=nameless)


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
