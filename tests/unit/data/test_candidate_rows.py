import json
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.json_lines import DAMAGED, lines, odd, spoiled, survives
from vlalign.data.candidate_rows import CandidateRows
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item

GOOD = {
    "id": "q1",
    "query": {"text": "a cat", "image": "q.png"},
    "candidates": [
        {"id": "d1", "text": "Felis", "label": 1, "score": 0.5, "title": "x"},
        {"id": 7, "images": ["a.png", "/b.png"], "score": 2},
        {"text": "dog", "label": False, "score": -1e3, "more": 1},
    ],
}


def build(path, **fields):
    return SOURCES.decode({"name": "candidates", "path": str(path), **fields}).build()


def row(id=None, **more):
    return {"id": id, "query": "q", "candidates": [{"text": "a", "label": 1}, {"text": "b"}], **more}


def candidates(*found):
    return row(candidates=list(found))


def test_a_line_becomes_a_row(tmp_path):
    rows = build(lines(tmp_path / "a.jsonl", GOOD), positives=2, negatives=None, licence="CC0")
    assert rows[0] == {
        "id": "q1",
        "query": Item(text="a cat", images=(tmp_path / "q.png",)),
        "candidates": [
            Item(text="Felis"),
            Item(images=(tmp_path / "a.png", Path("/b.png"))),
            Item(text="dog"),
        ],
        "candidate_ids": ["d1", "7", "2"],
        "numbers": {"label": [1.0, 0.0, 0.0], "score": [0.5, 2.0, -1000.0]},
    }
    assert rows.captions(0) == ("a cat",) and rows.fields(0) == {"id": "q1"}
    assert (len(rows), rows.positives, rows.negatives, rows.numbers) == (1, 2, None, ["label", "score"])
    assert rows.licences[0].licence == "CC0" and rows.skipped == {} and rows.noted == {}


def test_a_row_without_an_id_is_called_by_its_line_whenever_it_is_read(tmp_path):
    rows = build(lines(tmp_path / "a.jsonl", b"", row(), b"no", row(""), row(0)))
    assert [rows[index]["id"] for index in range(3)] == ["a.jsonl:2", "a.jsonl:4", "0"]
    assert rows.fields(1) == {"id": "a.jsonl:4"} and rows.skipped == {"not_json": ["a.jsonl:3"]}


def test_numbers_are_those_that_all_candidates_of_all_rows_have(tmp_path):
    found = [[("label", 1), ("a", 1), ("b", 2)], [("b", 3), ("label", None)]]
    rows = build(
        lines(
            tmp_path / "a.jsonl",
            candidates(*({"text": "x", **dict(each)} for each in found)),
            candidates({"text": "x", "b": 1, "c": 2}),
        )
    )
    assert rows.numbers == ["b", "label"] and rows[1]["numbers"] == {"b": [1.0], "c": [2.0], "label": [0.0]}
    assert rows[0]["numbers"] == {"b": [2.0, 3.0], "label": [1.0, 0.0]} and rows.noted == {"no_positive": 1}


def test_every_damaged_line_is_counted_and_no_good_one_is_lost(tmp_path):
    bad = [
        *DAMAGED,
        {"query": "q", "candidates": []},
        {"query": "q", "candidates": {"text": "a"}},
        candidates("a"),
        row(query=None),
        row(query={"text": " "}),
        row(query=["q"]),
        row(query={"text": 5}),
        row(query="\ud800"),
        candidates({"text": "a", "label": "1"}),
        candidates({"text": "a", "label": float("nan")}),
        candidates({"text": "a", "score": 10**400}),
        candidates({"image": 5}),
        candidates({"images": ["a", {}]}),
        candidates({"text": None}),
        candidates({"text": "a", "id": []}),
        candidates({"text": "a", "id": "x"}, {"text": "b", "id": "x"}),
        row(True),
        row("one"),
    ]
    for place in (0, len(bad)):  # the good ones first or last
        told = bad[:place] + [row("one"), row("two")] + bad[place:]
        rows = build(lines(tmp_path / "a.jsonl", *told))
        assert {rows[index]["id"] for index in range(len(rows))} == {"one", "two"}
        assert {reason: len(names) for reason, names in rows.skipped.items()} == {
            "not_json": 8, "not_utf8": 3, "no_candidates": 4, "no_query": 2, "no_text": 2, "not_text": 1,
            "bad_number": 3, "not_a_path": 2, "bad_id": 2, "duplicate_candidate": 1, "duplicate_id": 1,
        }  # fmt: skip
        survives(rows, len([line for line in told if line]))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spoiled(GOOD),
    st.fixed_dictionaries({"query": odd, "candidates": st.lists(st.dictionaries(st.sampled_from(
        ["id", "text", "image", "images", "label", "score"]), odd), max_size=3)}),
)  # fmt: skip
def test_nothing_that_a_line_says_is_more_than_a_bad_row(tmp_path, one, other):
    path = lines(tmp_path / "a.jsonl", row("good"), one, other)
    survives(build(path), 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"a.jsonl: no line of it can be used \(it is empty\)"),
        ([b"no", b"{}", b"{}"], r"a.jsonl: no line of it can be used \(not_json 1, no_candidates 2\)"),
    ],
)
def test_a_file_without_a_good_line_is_told(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        build(lines(tmp_path / "a.jsonl", *content))


def test_files_that_are_none_are_told(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "\0"):
        with pytest.raises(DataError):
            CandidateRows(path, "not stated")
    with pytest.raises(DataError, match="none.jsonl is no file; a path is relative to where the command"):
        build(tmp_path / "none.jsonl")
    for fields in ({"positives": -1}, {"negatives": -1}):
        with pytest.raises(ValueError, match="must be >= 0 or null, got -1"):
            build(tmp_path / "none.jsonl", **fields)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n \n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\n"])
def test_rows_are_found_again_in_any_order(tmp_path, start, end):
    told = [row(f"q{index}", query="é🦙" * index + "x") for index in range(20)]
    content = end.join(json.dumps(each, ensure_ascii=False).encode() for each in told)
    for last in (b"", end):
        (tmp_path / "a.jsonl").write_bytes(start + content + last)
        rows = build(tmp_path / "a.jsonl")
        assert [rows[index]["id"] for index in reversed(range(20))] == [each["id"] for each in told[::-1]]
        assert rows[7]["query"].text == told[7]["query"] and not rows.skipped
        assert [each["id"] for each in rows] == [each["id"] for each in told]


def test_one_array_is_read_as_lines_are(tmp_path):
    told = [row(f"q{index}", query='a "]}[{\\', more={"deep": [[1, {"x": "}"}], -0.5]}) for index in range(9)]
    forms = [json.dumps(told), json.dumps(told, indent=2), "\ufeff\n " + json.dumps(told)]
    forms += ["[\n" + ",\n".join(map(json.dumps, told)) + "\n]\n"]
    for form in forms:
        (tmp_path / "a.json").write_text(form, encoding="utf-8")
        rows = build(tmp_path / "a.json")
        assert [each["id"] for each in rows] == [f"q{index}" for index in range(9)] and not rows.skipped
        assert rows[4]["query"].text == 'a "]}[{\\'


def test_damage_of_an_array_costs_the_elements_that_it_is_in(tmp_path):
    one, two = json.dumps(row("one")), json.dumps(row("two"))
    for content, skipped in (
        (f'[{one}, 5, null, "a", [1, [2]], {two}]', ["a.json:2", "a.json:3", "a.json:4", "a.json:5"]),
        (f"[{one}, {two}, {one[:20]}", ["a.json:3"]),
        (f'[{one}, {two}, "no end', ["a.json:3"]),
        (f"[{one}]]] {two} {{", ["a.json:3"]),
        (f"[{one} {two}", None),
    ):
        (tmp_path / "a.json").write_text(content)
        rows = build(tmp_path / "a.json")
        assert [each["id"] for each in rows] == ["one", "two"]
        assert rows.skipped == ({} if skipped is None else {"not_json": skipped})


def test_a_source_crosses_processes(tmp_path):
    rows = build(lines(tmp_path / "a.jsonl", GOOD, b"no", row()))
    copy = pickle.loads(pickle.dumps(rows))
    assert list(copy) == list(rows) and copy.skipped == rows.skipped and copy.numbers == rows.numbers
    assert len(pickle.dumps(rows)) < 2000  # places, not rows


def test_a_file_that_was_changed_gives_bad_rows(tmp_path):
    path = lines(tmp_path / "a.jsonl", row("one"), row("two"))
    rows = build(path)
    lines(path, row("one"), row("other"))
    os.utime(path, ns=(1, 1))
    for read in (rows.__getitem__, rows.captions, rows.fields):
        with pytest.raises(BadRow, match="a.jsonl is not the file that was looked through") as caught:
            read(1)
        assert caught.value.reason == "changed_file"
    path.unlink()
    with pytest.raises(BadRow, match="is not there any more") as caught:
        rows[0]
    assert caught.value.reason == "missing_file"
