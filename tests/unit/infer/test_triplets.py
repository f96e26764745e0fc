"""`vlalign triplets` from captions and from records to rows that the source `candidates` reads."""

import json

import pytest
from pydantic import ValidationError

from tests.multimodal_models import picture
from tests.unit.infer.mined import lines, write
from vlalign.data.relations import Nouns
from vlalign.infer import triplets as room
from vlalign.infer.triplets import triplets
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES
from vlalign.types import RecipeError, UserError

SUBJECTS, OBJECTS = ("dog", "cat", "cow"), ("bench", "sofa", "table")
WORDS = Nouns({*SUBJECTS, *OBJECTS}, set())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """27 pictures, each with a caption and as a record; a torn one, and one of which nothing is said."""
    monkeypatch.setattr(room.Nouns, "wordnet", lambda: WORDS)
    rows, records = [], []
    for at in range(27):
        picture(at).save(tmp_path / f"{at}.png")
        subject, thing = SUBJECTS[at % 3], OBJECTS[at // 3 % 3]
        rows.append({"id": f"r{at}", "image": f"{at}.png", "caption": f"a {subject} sitting on the {thing}"})
        told = {"subject": subject, "predicate": "sitting on", "object": thing}
        records.append({"image": f"{at}.png", **told})
    (tmp_path / "torn.png").write_bytes((tmp_path / "0.png").read_bytes()[:60])
    rows += [
        {"id": "torn", "image": "torn.png", "caption": "a dog on a sofa"},
        {"id": "r", "image": "0.png", "caption": "nice"},
    ]
    write(tmp_path / "rows.jsonl", rows)
    write(tmp_path / "records.jsonl", records)
    return tmp_path


def recipe(folder, name, *overrides):
    data = f"data={{name: jsonl, path: {folder / 'rows.jsonl'}, id: id}}"
    told = [f"out={folder / name}", data, "count=40", *overrides]
    return load_recipe("recipes/triplets/captions.yaml", told)


def of_records(folder, name, *overrides):
    return recipe(folder, name, "data=null", f"records={folder / 'records.jsonl'}", *overrides)


def test_captions_and_records_of_the_same_give_the_same_rows(folder):
    found = triplets(recipe(folder, "captions"))
    told = json.loads((found / "triplets.json").read_text())
    assert told["relations"] == 27 and told["subjects"] == 3 and told["triplets"] == 40
    assert told["skipped"] == {"truncated": 1} and told["draws"] >= 40
    own, other = (lines(out / "triplets.jsonl") for out in (found, triplets(of_records(folder, "records"))))
    assert [row["query"]["text"] for row in own] == [row["query"]["text"] for row in other]
    assert {row["query"]["text"] for row in own} == {f"sitting on {each}" for each in OBJECTS}
    assert len(list((found / "images").glob("*.png"))) <= 27
    for row in other:
        ids = [int(each["images"][0].rsplit("/")[-1][:-4]) for each in (row["query"], *row["candidates"])]
        reference, target, distractor = ((SUBJECTS[at % 3], OBJECTS[at // 3 % 3]) for at in ids)
        assert reference[0] == target[0] != distractor[0] and reference[1] != target[1] == distractor[1]
        assert row["query"]["text"] == f"sitting on {target[1]}"
    rows = SOURCES.decode({"name": "candidates", "path": str(found / "triplets.jsonl")}).build()
    row = rows[0]
    assert len(rows) == 40 and row["numbers"]["label"] == [1.0, 0.0]
    assert row["query"].text and row["query"].images[0].is_file()


def test_files_that_are_equal_are_one_picture_and_so_none_is_right_and_wrong(folder):
    told = (folder / "records.jsonl").read_text().splitlines()
    again = [{**json.loads(line), "image": f"copy_{at}.png"} for at, line in enumerate(told)]
    for at, row in enumerate(again):
        (folder / row["image"]).write_bytes((folder / f"{at}.png").read_bytes())
        row["subject"] = SUBJECTS[(at + 1) % 3]  # of the copy another one is told, with the same object
    write(folder / "records.jsonl", [*map(json.loads, told), *again])
    for row in lines(triplets(of_records(folder, "copies", "count=200")) / "triplets.jsonl"):
        shown = [each["images"][0].rsplit("/")[-1] for each in (row["query"], *row["candidates"])]
        assert len({*shown}) == 3 and not any("copy" in name for name in shown)
        target, distractor = (int(name[:-4]) for name in shown[1:])
        assert {target % 3, (target + 1) % 3} != {distractor % 3, (distractor + 1) % 3}


def test_rows_are_those_of_the_seed_and_more_begin_with_the_same(folder):
    text = (triplets(of_records(folder, "a")) / "triplets.jsonl").read_text()
    assert (triplets(of_records(folder, "b")) / "triplets.jsonl").read_text() == text
    assert (triplets(of_records(folder, "c", "seed=1")) / "triplets.jsonl").read_text() != text
    assert (triplets(of_records(folder, "d", "count=60")) / "triplets.jsonl").read_text().startswith(text)
    assert (triplets(of_records(folder, "a")) / "triplets.jsonl").read_text() == text
    with pytest.raises(RecipeError, match="holds a run of another recipe"):
        triplets(of_records(folder, "a", "seed=2"))


def test_only_what_is_concrete_is_kept_and_a_search_in_vain_ends_with_a_sentence(folder):
    words = [f"{word}\t{5.0 if word != 'cow' else 1.0}" for word in (*SUBJECTS, *OBJECTS)]
    (folder / "norms.tsv").write_text("\n".join(words))
    asked = f"concreteness={folder / 'norms.tsv'}"
    for row in lines(triplets(of_records(folder, "some", asked)) / "triplets.jsonl"):
        ids = [int(each["images"][0].rsplit("/")[-1][:-4]) for each in (row["query"], *row["candidates"])]
        assert all(SUBJECTS[at % 3] != "cow" for at in ids)
    with pytest.raises(UserError, match="triplet 1 of 40 was not found in 20 tries among 3 subjects; lower"):
        triplets(of_records(folder, "none", asked, "threshold=5", "tries=20"))
    assert not (folder / "none" / "triplets.jsonl").exists()


def test_what_cannot_be_is_refused_with_a_sentence(folder):
    for overrides, told in (
        ([f"records={folder / 'records.jsonl'}"], "one of both"),
        (["data=null"], "one of both"),
        (["data={name: candidates, path: x}"], "must be pictures with captions"),
        (["count=0"], "count: must be >= 1"),
        (["tries=0"], "tries: must be >= 1"),
        (["threshold=.inf"], "threshold: must be finite"),
        (["records="], "records"),
    ):
        with pytest.raises((RecipeError, ValidationError), match=told):
            recipe(folder, "bad", *overrides)
