"""What a query shows may be said by another source, and what two of its rows have alike told as a number."""

import json
import pickle

import pytest
from PIL import Image

from tests.unit.data.json_lines import check_row, lines
from vlalign.data.sources.described import Described, DescribedRows
from vlalign.data.subset import Subset
from vlalign.registry import SOURCES, encode
from vlalign.types import BadRow, DataError, Item

KINDS = ["cat", "dog", "cat", "dog", "cow", "cat"]


@pytest.fixture
def folder(tmp_path):
    """Pairs a to f with a kind each, and queries about them; the picture of `b` is damaged."""
    told = []
    for row, (id, kind) in enumerate(zip("abcdef", KINDS, strict=True)):
        Image.new("RGB", (4, 4), (row * 10,) * 3).save(tmp_path / f"{id}.png")
        told.append({"id": id, "image": f"{id}.png", "caption": [f"says {id}", "other"], "kind": kind})
    (tmp_path / "b.png").write_bytes(b"\x89PNG no picture")
    lines(tmp_path / "pairs.jsonl", *told)

    def query(id, told, *candidates):
        own = [
            {"id": each, "text": f"text {each}", "label": int(each == id), "bm25": 0.5} for each in candidates
        ]
        return {"id": id, "query": told, "candidates": own}

    lines(
        tmp_path / "rows.jsonl",
        query("a", {"image": "a.png"}, "c", "b", "a"),
        query("b", {"image": "b.png"}, "b", "f"),
        query("c", {"image": "c.png", "text": "its own"}, "e", "c"),
        query("d", "a text alone", "d", "a", "b"),
        query("e", {"image": "e.png", "text": " "}, "e"),
        query("x", {"image": "a.png"}, "a"),
        query("y", "a text alone", "a"),
        query("f", {"image": "f.png"}, "f", "z"),
        b"no",
    )
    return tmp_path


def by(folder, **fields):
    return {"name": "jsonl", "path": str(folder / "pairs.jsonl"), "id": "id", "licence": "CC0", **fields}


def build(folder, data=None, **fields):
    told = data or {"name": "candidates", "path": str(folder / "rows.jsonl")}
    own = {"by": by(folder, label="kind"), "same": {"same_kind": "label"}, **fields}
    return SOURCES.decode({"name": "described", "data": told, **own}).build()


def test_what_shows_and_says_nothing_says_its_caption(folder):
    rows = build(folder, same={})
    plain = rows.rows
    assert len(rows) == len(plain) == 8
    said = {"a": "says a", "b": "says b", "c": "its own", "d": "a text alone", "e": "says e", "f": "says f"}
    for index in (0, 1, 2, 3, 4, 6, 7):
        row, before = rows.row(index), plain.row(index)
        assert row.query.text == said.get(row.id, "a text alone")
        assert row.query.images == before.query.images and len(row.query.images) == (row.id not in "dy")
        assert (row.candidates, row.candidate_ids, row.numbers) == (
            before.candidates,
            before.candidate_ids,
            before.numbers,
        )
        assert rows.captions(index) == (row.query.text,) and rows.fields(index) == {"id": row.id}
        check_row(rows[index])
    with pytest.raises(BadRow, match="by has no row 'x', a query's or a candidate's id; give it one") as told:
        rows[5]
    assert told.value.reason == "unknown_id"
    with pytest.raises(BadRow):
        rows.captions(5)
    assert rows.fields(5) == {"id": "x"}


def test_the_same_value_is_a_number_by_a_loop(folder):
    rows, kinds = build(folder), dict(zip("abcdef", KINDS, strict=True))
    assert list(rows.numbers) == ["bm25", "label", "same_kind"]
    for index in range(5):
        row, expected = rows[index], []
        for id in row["candidate_ids"]:
            if kinds[id] == kinds[row["id"]]:
                expected.append(1.0)
            else:
                expected.append(0.0)
        assert row["numbers"]["same_kind"] == expected
        assert row["numbers"]["label"] == [float(id == row["id"]) for id in row["candidate_ids"]]
        check_row(row)
    assert rows[0]["numbers"]["same_kind"] == [1.0, 0.0, 1.0]
    for index, id in ((5, "x"), (6, "y"), (7, "z")):
        with pytest.raises(BadRow, match=f"by has no row '{id}'") as told:
            rows[index]
        assert told.value.reason == "unknown_id"
    both = build(folder, same={"same": "id", "same_kind": "label"})
    assert both[0]["numbers"]["same"] == [0.0, 0.0, 1.0] and list(both.numbers)[2:] == ["same", "same_kind"]


def test_all_else_is_that_of_data_and_the_outer_recipe_draws(folder):
    rows = build(folder, positives=None, negatives=2)
    assert (rows.positives, rows.negatives) == (None, 2)
    assert rows.skipped == rows.rows.skipped == {"not_json": ["rows.jsonl:9"]}
    assert rows.noted == rows.rows.noted == {"no_positive": 2} and rows.documents is None
    assert [each.name for each in rows.licences] == ["rows.jsonl", "pairs.jsonl"]
    assert len(build(folder, {"name": "pairs", "data": by(folder), "query": "text"}).licences) == 1
    other = pickle.loads(pickle.dumps(rows))
    assert [other[index] for index in range(5)] == [rows[index] for index in range(5)]


def test_pictures_that_ask_for_captions_of_a_corpus(folder):
    """Over pairs: the picture is decoded with its row alone, and the candidates are those of the corpus."""
    pairs = {"name": "pairs", "data": by(folder), "query": "image"}
    rows = build(folder, pairs, by=by(folder, caption="kind", label="kind"))
    assert rows.row(2).candidates == () and rows.documents is rows.rows.documents
    row = rows[2]
    assert (row["query"].text, row["query"].images[0].getpixel((0, 0))) == ("cat", (20, 20, 20))
    assert row["candidates"] == [Item(text="says c")] and row["numbers"]["same_kind"] == [1.0]
    assert rows.captions(1) == ("dog",) and rows.fields(1) == {"id": "b"}
    with pytest.raises(BadRow):
        rows[1]


def test_it_is_nested_and_survives_a_recipe(folder):
    inner = {
        "name": "described",
        "data": {"name": "candidates", "path": str(folder / "rows.jsonl")},
        "by": by(folder, label="kind"),
        "same": {"same_kind": "label"},
    }
    told = {"name": "described", "data": inner, "by": by(folder), "same": {"same": "id"}}
    spec = SOURCES.decode(told)
    again = SOURCES.decode(json.loads(json.dumps(encode(spec, component=True))))
    assert again == spec and isinstance(again.data, Described)
    assert again.build()[0]["numbers"].keys() == {"bm25", "label", "same_kind", "same"}


def test_what_cannot_be_is_refused_with_a_sentence(folder):
    pairs, queries = by(folder), {"name": "candidates", "path": str(folder / "rows.jsonl")}
    for fields, sentence in (
        ({"data": pairs}, "data must be queries with candidates, as `candidates` reads them, not pairs"),
        ({"by": queries}, "by must be pictures with captions, and has queries with candidates"),
        ({"same": {"label": "id"}}, "must not name a number 'label', which candidates have already; choose"),
        ({"same": {"text": "id"}}, "must not name a number 'text'"),
        ({"negatives": -1}, "negatives must be >= 0"),
        ({"same": {"a": 1}}, "string"),
    ):
        with pytest.raises(ValueError, match=sentence):
            SOURCES.decode({"name": "described", "data": queries, "by": pairs, **fields})
    with pytest.raises(DataError, match="data has a number 'bm25' already; call that of same otherwise"):
        build(folder, same={"bm25": "id"})
    with pytest.raises(
        DataError, match="by has no field 'kind' in its row 'a', which has id, label; name one of these"
    ):
        build(folder, same={"same_kind": "kind"})


def test_two_rows_of_one_id_are_refused(folder):
    spec = SOURCES.decode(
        {"name": "described", "data": {"name": "candidates", "path": "x"}, "by": by(folder)}
    )
    twice = Subset(spec.by.build(), [0, 1, 0], {}, {}, what="x")
    with pytest.raises(DataError, match="two rows of by are called 'a'; give each its own id"):
        DescribedRows(spec, build(folder).rows, twice)
