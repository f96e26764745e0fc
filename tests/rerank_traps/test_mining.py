"""What is right for a query is never mined as wrong for it, under whatever name and however it is written."""

import json

import pytest

from tests.unit.data import pictures
from tests.unit.infer.mined import lines, recipe, world, write
from vlalign.infer.mine import mine

SENTENCE = "a red cat by the sea sits on the old wall of a small house and looks at the boats that come home"
CHANGED = f"{SENTENCE} today"  # of 22 shingles together they share 21
QUERY = "where does the red cat sit when the boats come home in the evening and the sea is calm again"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One text is right, and one picture; of each there are copies among the documents."""
    place = world(tmp_path_factory.mktemp("trap"))
    red = pictures.encoded(pictures.noise(seed=5))
    for name in ("right.png", "copy.png"):
        (place / name).write_bytes(red)
    (place / "other.png").write_bytes(pictures.encoded(pictures.noise(seed=6)))
    right = {"id": "text", "text": SENTENCE}, {"id": "picture", "image": "right.png"}
    queries = {"q-text": {"text": QUERY}, "q-picture": {"image": "other.png"}}
    rows = [
        {"id": id, "query": query, "candidates": [{**each, "label": 1} for each in right]}
        for id, query in queries.items()
    ]
    copies = [
        *right,  # the same id
        {"id": "shouted", "text": SENTENCE.upper().replace(" ", "  ")},  # the same text
        {"id": "changed", "text": CHANGED},  # a near duplicate of a positive
        {"id": "copy", "image": "copy.png"},  # the same picture under another name
        {"id": "with-words", "text": "look", "images": ["copy.png"]},  # and beside a text
        {"id": "asked", "text": QUERY.capitalize()},  # the query
        {"id": "asked-so", "text": f"so {QUERY}"},  # nearly
        {"id": "asking", "image": "other.png"},
    ]
    write(place / "rows.jsonl", rows)
    write(place / "corpus.jsonl", [*copies, *({"id": f"d{at}", "text": f"text {at}"} for at in range(9))])
    return place


def negatives(out):
    return {
        row["id"]: {each["id"] for each in row["candidates"] if each["label"] == 0}
        for row in lines(out / "candidates.jsonl")
    }


@pytest.mark.parametrize("positives", ["all", "retrieved"])
def test_12_same_id_same_hash_and_near_duplicates_are_never_negatives(positives, folder, tmp_path):
    out = mine(recipe(folder, tmp_path / "out", k=20, window=[1, 40], positives=positives))
    fine = {f"d{at}" for at in range(9)}
    assert negatives(out) == {"q-text": fine | {"asking"}, "q-picture": fine | {"asked", "asked-so"}}
    assert json.loads((out / "mined.json").read_text())["excluded"] == {
        "same_as_positive": 6, "near_positive": 2, "same_as_query": 2, "near_query": 1,
    }  # fmt: skip
    for row in lines(out / "candidates.jsonl"):
        assert {each["id"] for each in row["candidates"] if each["label"] == 1} == {"text", "picture"}


def test_12_they_would_be_taken_if_nobody_looked(folder, tmp_path):
    """They are the hardest of all: without the rule of near duplicates, those are the first negatives."""
    out = mine(recipe(folder, tmp_path / "out", k=2, window=[1, 40], near_duplicate=None))
    assert "asked-so" in negatives(out)["q-text"] and "changed" in negatives(out)["q-text"]
    strict = mine(recipe(folder, tmp_path / "strict", k=20, window=[1, 40], near_duplicate=0.97))
    assert "changed" in negatives(strict)["q-text"]  # 21 / 22 is less
