import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from vlalign.evals.metrics.classification import accuracies, by_shots, majority, per_class_recall
from vlalign.evals.metrics.ranks import count, hits


def test_accuracies_equal_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores, labels = (
        torch.randn(200, 12, generator=generator),
        torch.randint(0, 12, (200,), generator=generator),
    )
    ranks = count(scores, labels[:, None] == torch.arange(12))
    found = accuracies(ranks, labels, 12)
    for name, arguments in {
        "acc1": {"average": "micro"},
        "acc5": {"average": "micro", "top_k": 5},
        "mean_per_class_recall": {"average": "macro"},
    }.items():
        expected = multiclass_accuracy(scores, labels, num_classes=12, **arguments).item()
        assert found[name] == pytest.approx(expected, abs=1e-6)


def test_classes_without_rows_do_not_count():
    labels = torch.tensor([0, 0, 2])
    ranks = count(torch.eye(4)[[0, 1, 2]], labels[:, None] == torch.arange(4))
    recalls, support = per_class_recall(hits(ranks, 1), labels, 4)
    assert support.tolist() == [2, 0, 1, 0] and recalls[[0, 2]].tolist() == [0.5, 1.0] and recalls[1].isnan()
    assert accuracies(ranks, labels, 4)["mean_per_class_recall"] == 0.75


def test_recall_is_told_apart_by_how_many_rows_a_class_was_learnt_from():
    shots = torch.tensor([101, 100, 20, 19, 0, 500])
    groups = by_shots(shots, (20, 100))
    assert {name: group.nonzero().flatten().tolist() for name, group in groups.items()} == {
        "many": [0, 5],
        "medium": [1, 2],
        "few": [3, 4],
    }
    labels = torch.tensor([0, 0, 3, 3, 3, 4, 5])
    named = torch.tensor([0, 1, 3, 0, 0, 4, 0])
    ranks = count(torch.eye(6)[named], labels[:, None] == torch.arange(6))
    found = accuracies(ranks, labels, 6, groups)
    recalls = {0: 1 / 2, 3: 1 / 3, 4: 1.0, 5: 0.0}  # by hand
    assert found["mean_per_class_recall"] == pytest.approx(sum(recalls.values()) / 4)
    assert found["mean_per_class_recall_many"] == pytest.approx((recalls[0] + recalls[5]) / 2)
    assert found["mean_per_class_recall_few"] == pytest.approx((recalls[3] + recalls[4]) / 2)
    assert "mean_per_class_recall_medium" not in found  # none of its classes is asked for
    level = majority(labels, torch.tensor([0, 0, 5]), 6, groups)
    assert level["mean_per_class_recall_many"] == 0.5 and level["mean_per_class_recall_few"] == 0
    assert set(found) <= set(level)


def test_majority_names_what_was_frequent_before():
    known, labels = torch.tensor([2, 2, 1, 0]), torch.tensor([1, 2, 2, 2, 0, 3, 3, 3])
    found = majority(labels, known, 8)
    assert found["acc1"] == 3 / 8 and found["mean_per_class_recall"] == 0.25
    assert found["acc1_uniform"] == 1 / 8 and found["acc5_uniform"] == 5 / 8


def test_equally_frequent_classes_are_named_in_a_random_order_and_missing_ones_never():
    labels = torch.arange(4).repeat(3)
    groups = {"one": torch.arange(4) == 0, "other": torch.arange(4) == 3}
    found = majority(labels, labels, 4, groups)
    assert found["acc1"] == found["mean_per_class_recall"] == pytest.approx(0.25) and found["acc5"] == 1
    assert found["mean_per_class_recall_one"] == found["mean_per_class_recall_other"] == pytest.approx(0.25)
    known = torch.tensor([5, 5, 1, 1, 1, 2, 3, 4, 6])  # 1, 5, then three of four, and never 0
    level = [majority(torch.tensor([name]), known, 7) for name in range(7)]
    assert [each["acc1"] for each in level] == [0, 1, 0, 0, 0, 0, 0]
    assert [each["acc5"] for each in level] == pytest.approx([0, 1, 0.75, 0.75, 0.75, 1, 0.75])
    few = majority(torch.tensor([0, 1]), torch.tensor([1, 1]), 2)
    assert few["acc1"] == few["acc5"] == 0.5


def test_a_model_that_tells_no_class_apart_gets_the_uniform_level():
    labels = torch.tensor([0, 1, 2, 2])
    ranks = count(torch.zeros(4, 10), labels[:, None] == torch.arange(10))
    assert accuracies(ranks, labels, 10) == pytest.approx(
        {"acc1": 0.1, "acc5": 0.5, "mean_per_class_recall": 0.1}
    )
