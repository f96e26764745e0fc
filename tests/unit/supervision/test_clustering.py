import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.supervision.frozen import blobs, same_partition
from vlalign.supervision import clustering
from vlalign.supervision.clustering import balanced, counted, kmeans, splits
from vlalign.types import RecipeError


def inertia(rows, labels):
    return sum(
        float(((rows[labels == one] - rows[labels == one].mean(0)) ** 2).sum()) for one in labels.unique()
    )


@pytest.mark.parametrize("cluster", [kmeans, balanced])
def test_clusters_that_lie_apart_are_found(cluster):
    rows, label = blobs([20, 20, 20, 20])
    assert same_partition(cluster(rows, 4, seed=1), label)


def test_kmeans_is_the_same_again_and_everyone_is_nearest_to_their_own_centre():
    rows = torch.nn.functional.normalize(
        torch.randn(300, 6, generator=torch.Generator().manual_seed(0)), dim=1
    )
    labels = kmeans(rows, 7, seed=3)
    assert torch.equal(labels, kmeans(rows, 7, seed=3)) and not torch.equal(labels, kmeans(rows, 7, seed=4))
    assert labels.dtype == torch.int64 and set(labels.tolist()) == set(range(7))
    centres = torch.stack([rows[labels == one].mean(0) for one in range(7)])
    assert (torch.cdist(rows, centres).argmin(1) == labels).float().mean() > 0.97


def test_kmeans_of_many_rows_looks_at_a_sample_and_labels_all(monkeypatch):
    monkeypatch.setattr(clustering, "SAMPLE", 5)
    rows, label = blobs([100, 100, 100])
    assert same_partition(kmeans(rows, 3, seed=2), label)


def test_more_clusters_than_rows_are_refused():
    with pytest.raises(RecipeError, match="data.annotate: k is 9, and there are 8 rows"):
        kmeans(torch.eye(8), 9, seed=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_balanced_sizes_differ_by_one_at_most(rows, k, seed):
    k = min(k, rows)
    labels = balanced(torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed)), k, seed)
    sizes = labels.bincount(minlength=k)
    assert len(sizes) == k and sizes.max() - sizes.min() <= 1 and sizes.sum() == rows


def test_balanced_groups_are_tight_and_the_same_again():
    rows = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    labels = balanced(rows, 8, seed=0)
    assert torch.equal(labels, balanced(rows, 8, seed=0))
    chance = labels[torch.randperm(200, generator=torch.Generator().manual_seed(2))]
    assert inertia(rows, labels) < 0.6 * inertia(rows, chance)
    assert inertia(rows, labels) < 1.25 * inertia(rows, kmeans(rows, 8, seed=0))


def test_equal_rows_are_shared_out():
    assert balanced(torch.ones(7, 3), 3, seed=0).bincount().tolist() in ([2, 2, 3], [2, 3, 2], [3, 2, 2])


def test_splits():
    assert splits(torch.tensor([100, 39, 20, 19])).tolist() == [5, 2, 1, 1]  # M = 19
    assert splits(torch.tensor([100, 39, 20, 3])).tolist() == [10, 3, 2, 1]  # M = 10
    assert splits(torch.tensor([9, 1])).tolist() == [1, 1]


def test_counted():
    classes, sizes = counted(torch.tensor([70, -3, 70, 70]))
    assert classes.tolist() == [1, 0, 1, 1] and sizes.tolist() == [1, 3]
