import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from vlalign.evals.metrics.classification import accuracies, majority, per_class_recall
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


def test_majority_names_what_was_frequent_before():
    known, labels = torch.tensor([2, 2, 1, 0]), torch.tensor([1, 2, 2, 2, 0, 3, 3, 3])
    found = majority(labels, known, 8)
    assert found["acc1"] == 3 / 8 and found["mean_per_class_recall"] == 0.25
    assert found["acc1_uniform"] == 1 / 8 and found["acc5_uniform"] == 5 / 8


def test_a_model_that_tells_no_class_apart_gets_the_uniform_level():
    labels = torch.tensor([0, 1, 2, 2])
    ranks = count(torch.zeros(4, 10), labels[:, None] == torch.arange(10))
    assert accuracies(ranks, labels, 10) == pytest.approx(
        {"acc1": 0.1, "acc5": 0.5, "mean_per_class_recall": 0.1}
    )
