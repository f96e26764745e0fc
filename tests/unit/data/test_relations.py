"""The rule for captions, on sentences whose relations are told by hand; a file of relations."""

import json

import pytest

from vlalign.data.relations import Nouns, Relation, of_file, relations
from vlalign.types import DataError

NOUNS = Nouns(
    {"dog", "bench", "park", "man", "hat", "horse", "building", "city", "tall", "glass", "glasses", "bus"}
    | {"baby", "cup", "tea", "boat", "lady", "red", "table", "person", "skateboard", "street"},
    {"tall", "red", "old"},
)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog sitting on the old bench", [("dog", "sitting on", "bench")]),
        (
            "a dog is sitting on a bench in the park",
            [("dog", "sitting on", "bench"), ("bench", "in", "park")],
        ),
        (
            "a person riding a skateboard down the street",
            [("person", "riding", "skateboard"), ("skateboard", "down", "street")],
        ),
        ("Two dogs on benches.", [("dog", "on", "bench")]),
        ("a man wearing a red hat and riding a horse", [("man", "wearing", "hat")]),
        ("a tall building in the city", [("building", "in", "city")]),
        ("a man with glasses; a bus", [("man", "with", "glasses")]),
        ("babies beside ladies", [("baby", "beside", "lady")]),
        ("a cup of tea", [("cup", "of", "tea")]),
        ("a dog, on a bench", []),
        ("a dog that sits, a boat", []),
        ("something on a bench", []),
        ("a dog on something", []),
        ("a dog is old", []),
        ("building", []),
        ("", []),
        ("??", []),
    ],
)
def test_a_caption_says_these_relations(caption, expected):
    assert [*relations(caption, NOUNS)] == expected


def test_a_noun_is_in_the_singular_and_no_adjective():
    words = ("dogs", "buses", "ladies", "glasses", "red", "tall", "xyz", "s")
    assert [NOUNS.of(word) for word in words] == ["dog", "bus", "lady", "glasses", None, None, None, None]


def test_a_file_tells_relations_and_what_is_bad_about_others(tmp_path):
    (tmp_path / "a.png").touch()
    good = {"image": "a.png", "subject": "dog ", "predicate": "sitting  on", "object": "red bench"}
    lines = [
        json.dumps(good),
        "{",
        json.dumps({**good, "image": "b.png"}),
        json.dumps({**good, "object": ""}),
    ]
    lines.append(json.dumps({**good, "subject": 3}))
    (tmp_path / "records.jsonl").write_text("\n".join(lines) + "\n")
    skipped = {}
    found = [*of_file(tmp_path / "records.jsonl", skipped)]
    assert found == [Relation(tmp_path / "a.png", "dog", "sitting on", "red bench")]
    assert {reason: len(ids) for reason, ids in skipped.items()} == {
        "not_json": 1, "missing_file": 1, "no_text": 1, "not_text": 1,
    }  # fmt: skip
    with pytest.raises(DataError, match="is no file"):
        [*of_file(tmp_path / "none.jsonl", skipped)]
