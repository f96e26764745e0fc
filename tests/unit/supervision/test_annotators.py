"""Annotators over given features, each property of their papers, and loops over classes."""

import math

import numpy as np
import pytest
import torch

from tests.unit.supervision.frozen import Given, blobs, same_partition
from vlalign.supervision.annotators.features import Features
from vlalign.supervision.annotators.kmeans import KMeans
from vlalign.supervision.annotators.number import Number
from vlalign.supervision.annotators.spread import Spread
from vlalign.supervision.annotators.stages import Stages
from vlalign.supervision.annotators.subclasses import Subclasses
from vlalign.supervision.clustering import kmeans
from vlalign.types import RecipeError


def classed(sizes, loose=None, seed=0):
    """Rows of classes of these sizes; `loose`: the noise of each class."""
    random = np.random.default_rng(seed)
    rows, labels = [], []
    for label, size in enumerate(sizes):
        noise = random.normal(size=(size, 8)) * (0.1 if loose is None else loose[label])
        rows.append(np.eye(8)[label % 8] + noise)
        labels += [7 * label - 3] * size
    order = random.permutation(len(labels))
    features = torch.tensor(np.concatenate(rows)[order], dtype=torch.float32)
    features = torch.nn.functional.normalize(features, dim=1)
    return Given({("image", None): features}, {"concept": torch.tensor(labels)[order]})


def test_features_are_what_the_encoder_gives():
    rows = Given({("image", None): torch.eye(3), ("text", "a/model"): -torch.eye(3)})
    assert Features(side="image")(rows) is rows.known["image", None]
    assert Features(side="text", model="a/model")(rows) is rows.known["text", "a/model"]


def test_kmeans_labels_the_side_and_model_that_is_named():
    rows, label = blobs([15, 15, 15])
    given = Given({("text", "a/model"): rows})
    assert same_partition(KMeans(k=3, side="text", model="a/model", seed=5)(given), label)


def test_labels_of_stages_are_read_digit_by_digit():
    """Y_s // K = Y_(s-1) and Y_s % K = y_s; one stage is plain k-means; its clusters refine those before."""
    k, names = 4, ("first", "second", "third")
    known = {("image", name): blobs([30] * 4, noise=0.4, seed=seed)[0] for seed, name in enumerate(names)}
    given = Given(known)
    before = torch.zeros(120, dtype=torch.int64)
    for stage in range(3):
        labels = Stages(k=k, models=names[: stage + 1], seed=2)(given)
        own = kmeans(known["image", names[stage]], k, 2)
        assert torch.equal(labels // k, before) and torch.equal(labels % k, own)
        if stage == 0:
            assert torch.equal(labels, KMeans(k=k, side="image", model="first", seed=2)(given))
        before = labels
    assert len(before.unique()) > k and before.max() < k**3  # what the released code gives has k labels


@pytest.mark.parametrize("balanced", [True, False])
def test_subclasses_refine_classes_and_none_is_shared(balanced):
    sizes = [90, 47, 20, 15]  # M = 15: 6, 3, 1 and 1 subclasses
    rows = classed(sizes)
    labels, classes = Subclasses(by="concept", balanced=balanced)(rows), rows.fields["concept"]
    assert labels.dtype == torch.int64 and torch.equal(
        labels, Subclasses(by="concept", balanced=balanced)(rows)
    )
    counts = [len(labels[classes == one].unique()) for one in classes.unique()]
    assert counts == [6, 3, 1, 1] and len(labels.unique()) == 11 == labels.max() + 1
    assert all(len(classes[labels == one].unique()) == 1 for one in labels.unique())
    if balanced:
        for one in classes.unique():
            found = labels[classes == one].unique(return_counts=True)[1]
            assert found.max() - found.min() <= 1


def test_each_class_is_one_subclass_where_all_are_of_one_size():
    rows = classed([12] * 5)
    assert same_partition(Subclasses(by="concept")(rows), rows.fields["concept"])


def test_subclasses_follow_what_lies_apart_within_a_class():
    features, colour = blobs([20] * 4)
    given = Given({("image", None): features}, {"concept": torch.zeros(80, dtype=torch.int64)})
    given.fields["concept"][colour == 3] = 1  # 60 of three colours, 20 of one
    assert same_partition(Subclasses(by="concept")(given), colour)


def spread_by_loop(rows, form):
    features, classes = rows.known["image", None].double().numpy(), rows.fields["concept"].numpy()
    names, sizes = np.unique(classes, return_counts=True)
    looseness = []
    for name in names:
        own = features[classes == name]
        distances = [np.linalg.norm(row - own.mean(0)) for row in own]
        looseness.append(np.mean(distances) / math.log(len(own) + 10))
    looseness = np.clip(looseness, np.percentile(looseness, 10), np.percentile(looseness, 90))
    ratio = dict(zip(names, looseness / looseness.mean(), strict=True))
    size = dict(zip(names, sizes, strict=True))
    split = {name: size[name] // max(sizes.min(), 10) > 1 for name in names}
    found = {name: (math.exp(ratio[name]) if form == "exponential" else ratio[name]) for name in names}
    return torch.tensor([found[name] if split[name] else 1.0 for name in classes], dtype=torch.float64)


@pytest.mark.parametrize("form", ["exponential", "linear"])
def test_spread_is_that_of_a_loop(form):
    rows = classed([60, 45, 30, 20, 12], loose=[0.3, 0.1, 0.2, 0.05, 0.4])
    found = Spread(by="concept", form=form)(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), spread_by_loop(rows, form), rtol=1e-5, atol=1e-6)


def test_spread_grows_with_looseness_and_is_1_for_classes_that_are_not_split():
    rows = classed([40, 40, 40, 11], loose=[0.05, 0.15, 0.3, 0.6])
    classes = rows.fields["concept"]
    for form, least in (("exponential", 1.0), ("linear", 0.0)):
        found = Spread(by="concept", form=form)(rows)
        tight, middle, wide, small = (found[classes == one].unique() for one in classes.unique())
        assert least < tight < middle < wide and small.tolist() == [1.0]
    linear = Spread(by="concept", form="linear")(rows)
    assert float(linear[classes == classes.min()][0]) < 1  # the released form cools the tightest
    torch.testing.assert_close(Spread(by="concept")(rows)[classes < 18], linear[classes < 18].exp())


def test_a_class_of_equal_rows_has_no_spread():
    given = Given({("image", None): torch.eye(4)[:1].repeat(30, 1)}, {"concept": torch.arange(30) // 25})
    for form in ("exponential", "linear"):
        assert Spread(by="concept", form=form)(given).tolist() == [1.0] * 30


def aged(*ages):
    return Given({}, written={"age": list(ages), "id": [f"row{place}" for place in range(len(ages))]})


def test_numbers_are_between_low_and_high_and_a_row_that_cannot_be_read_is_at_low():
    found = Number(by="age", low=-20.0, high=60.0)(aged("-20", "60", " 20.0 ", "4e1", None, "0"))
    assert found.dtype == torch.float32 and found.tolist() == [0, 1, 0.5, 0.75, 0, 0.25]
    random = np.random.default_rng(0).uniform(3, 5, 100)
    found = Number(by="age", low=3.0, high=5.0)(aged(*map(str, random)))
    torch.testing.assert_close(found.double(), torch.from_numpy((random - 3) / 2), atol=1e-7, rtol=0)


@pytest.mark.parametrize("wrong", ["old", "", "nan", "inf", "100.1", "-1", "1,5"])
def test_what_is_no_number_or_out_of_range_is_told_with_its_row(wrong):
    number = Number(by="age", low=0.0, high=100.0)
    told = f"the row 'row2' has '{wrong}' in the field 'age'; a number from 0 to 100 is asked for"
    with pytest.raises(RecipeError, match=f"^data.annotate: {told}: correct the data, or set low and high$"):
        number(aged("1", "2", wrong, "100"))
    with pytest.raises(RecipeError, match="the row 'row0' has .*, and so in 2 more rows; a number"):
        number(aged(wrong, wrong, "3", wrong))


@pytest.mark.parametrize(
    ("component", "fields", "told"),
    [
        (KMeans, {"k": 0, "side": "text"}, "k must be >= 1, got 0"),
        (KMeans, {"k": 2, "side": "text", "seed": -1}, "seed must be"),
        (Stages, {"models": ()}, "models is empty"),
        (Stages, {"k": 0, "models": (None,)}, "k must be >= 1"),
        (Stages, {"k": 10**7, "models": ("a",) * 3}, "k must be smaller for 3 stages"),
        (Stages, {"models": (None,), "seed": 2**32}, "seed must be"),
        (Subclasses, {"by": "concept", "seed": -1}, "seed must be"),
        (Number, {"by": "age", "low": 1.0, "high": 1.0}, "low must be below high, got 1.0 and 1.0"),
        (Number, {"by": "age", "low": 0.0, "high": math.inf}, "low must be below high"),
        (Number, {"by": "age", "low": math.nan, "high": 1.0}, "low must be below high"),
    ],
)
def test_fields_are_checked(component, fields, told):
    with pytest.raises(ValueError, match=told):
        component(**fields)


def test_rows_that_cannot_be_read_change_nothing_for_the_others():
    features, label = blobs([60, 40])
    bad = torch.zeros(1, features.shape[1])
    without = Given({("image", None): features}, {"concept": label})
    beside = Given(
        {("image", None): torch.cat([features, bad])}, {"concept": torch.cat([label, torch.tensor([7])])}
    )
    one, other = (Subclasses(by="concept")(rows) for rows in (without, beside))
    assert torch.equal(other[:-1], one) and other[-1] == -1
    one, other = (Spread(by="concept")(rows) for rows in (without, beside))
    assert torch.equal(other[:-1], one) and other[-1] == 1
