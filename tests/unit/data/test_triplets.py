"""Every constraint of a triplet, on relations by chance; how often subjects are drawn; concreteness."""

from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from vlalign.data.relations import Relation
from vlalign.data.triplets import UNKNOWN, Triplet, Triplets, concreteness, read_norms
from vlalign.types import DataError, UserError


def world(count=300, seed=0):
    random = np.random.default_rng(seed)
    subjects, objects = [f"s{at}" for at in range(8)], [f"o{at}" for at in range(6)]
    odds = np.arange(1, 9) / 36
    return [
        Relation(f"i{random.integers(120)}", random.choice(subjects, p=odds), "on", random.choice(objects))
        for _ in range(count)
    ]


def test_every_triplet_keeps_every_rule():
    relations = world()
    among, found = Triplets(relations, 5), 0
    for place in range(2000):
        one = among.draw(np.random.default_rng([0, place]))
        if one is None:
            continue
        found += 1
        reference, target, distractor = one
        assert {*one} <= {*relations}
        assert reference.subject == target.subject in among.subjects
        assert reference.object != target.object == distractor.object
        assert distractor.subject != target.subject
        assert len({each.image for each in one}) == 3
        right = {x.image for x in relations if (x.subject, x.object) == (target.subject, target.object)}
        assert not right & {reference.image, distractor.image}
        assert one.condition == f"on {target.object}"
    assert found > 1900


def test_subjects_are_drawn_as_often_as_they_have_pictures():
    relations = world()
    among = Triplets(relations, 5)
    random = np.random.default_rng(1)
    drawn = Counter(one.reference.subject for _ in range(6000) if (one := among.draw(random)))
    images = {name: {each.image for each in relations if each.subject == name} for name in among.subjects}
    assert among.subjects == {name: len(own) for name, own in images.items()}
    total = sum(among.subjects.values())
    expected = [drawn.total() * count / total for count in among.subjects.values()]
    assert chisquare([drawn[name] for name in among.subjects], expected).pvalue > 0.001


def test_a_subject_of_few_pictures_or_of_one_object_is_none():
    many = [Relation(f"i{at}", "dog", "on", f"o{at % 2}") for at in range(5)]
    few = [Relation(f"j{at}", "cat", "on", f"o{at % 2}") for at in range(4)]
    alike = [Relation(f"k{at}", "cow", "on", "o0") for at in range(9)]
    assert Triplets(many + few + alike, 5).subjects == {"dog": 5}
    assert Triplets([*few, *few], 4).subjects == {"cat": 4}  # pictures count, not relations
    with pytest.raises(
        UserError, match="no subject of 13 relations is in 5 pictures with two objects; lower"
    ):
        Triplets(few + alike, 5)


def test_what_has_no_target_or_no_distractor_is_none():
    same = [Relation("i", "dog", "on", each) for each in ("bench", "sofa")]
    assert Triplets(same, 1).draw(np.random.default_rng(0)) is None
    alone = [Relation(each, "dog", "on", each) for each in ("bench", "sofa")]
    assert Triplets(alone, 1).draw(np.random.default_rng(0)) is None
    other = [*alone, *(Relation("x", "cat", "on", each) for each in ("bench", "sofa"))]
    assert Triplets(other, 2).draw(np.random.default_rng(0)) is not None


def test_concreteness_is_the_mean_over_six_and_a_phrase_is_unknown(tmp_path):
    path = tmp_path / "norms.tsv"
    path.write_text("Dog\t4.9\nbench\t5.0\ncat\t4.8\n\n")
    norms = read_norms(path)
    dog, other = Relation("a", "dog", "on", "red bench"), Relation("c", "Cat", "on", "bench")
    found = concreteness(Triplet(dog, Relation("b", "dog", "on", "bench"), other), norms)
    assert found == pytest.approx((4.9 + UNKNOWN + 4.9 + 5.0 + 4.8 + 5.0) / 6)
    path.write_text("dog 4.9\n")
    with pytest.raises(DataError, match="expected lines of a word, a tab and a score"):
        read_norms(path)
