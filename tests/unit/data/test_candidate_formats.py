import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.json_lines import DAMAGED, check_row, lines, spoiled, survives
from vlalign.registry import SOURCES
from vlalign.types import DataError, Item

MARK = "<|image_1|>\n"
GOOD = {
    "flag_embedding": {
        "query": "q",
        "pos": ["a", "b"],
        "neg": ["c"],
        "pos_scores": [3, 2.5],
        "neg_scores": [-1],
        "prompt": "Which?",
    },
    "mmeb": {
        "qry": MARK + "What?",
        "qry_image_path": "q.png",
        "pos_text": "yes",
        "pos_image_path": "",
        "neg_text": MARK + "Represent.",
        "neg_image_path": "n.png",
    },
    "unime_v2": {
        "query_text": MARK + "Find it.",
        "query_image": "q.png",
        "pos_text": MARK,
        "pos_image": "p.png",
        "query_pos_scores": 0.9,
        "hard_negatives": [[MARK, "n.png"], ["text", ""], [MARK, "n.png"]],
        "hard_negatives_scores": [0.2, 0.1, 0.3],
    },
    "ms_swift": {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>Find it."}],
        "images": ["q.png"],
        "positive_messages": [[{"role": "assistant", "content": "one"}]],
        "positive_images": [[]],
        "negative_messages": [
            [{"role": "assistant", "content": "<image>"}],
            [{"content": "<image>a<image>"}],
        ],
        "negative_images": ["n.png", ["n.png", "m.png"]],
    },
}
ROWS = {  # query, candidates, numbers; None where a picture has no text
    "flag_embedding": (
        ("q",),
        [("a",), ("b",), ("c",)],
        {"label": [1, 1, 0], "teacher_score": [3, 2.5, -1]},
    ),
    "mmeb": (("What?", "q.png"), [("yes",), ("Represent.", "n.png")], {"label": [1, 0]}),
    "unime_v2": (
        ("Find it.", "q.png"),
        [("", "p.png"), ("", "n.png"), ("text",)],
        {"label": [1, 0, 0], "judge_score": [0.9, 0.2, 0.1]},
    ),
    "ms_swift": (
        ("Find it.", "q.png"),
        [("one",), ("", "n.png"), ("a", "n.png", "m.png")],
        {"label": [1, 0, 0]},
    ),
}
FORMATS = sorted(GOOD)


def build(form, path, **fields):
    return SOURCES.decode({"name": form, "path": str(path), **fields}).build()


def one(form, tmp_path, **changes):
    """The row of the good object with changes, or the reason that it is bad."""
    told = {**GOOD[form], "id": "r", **changes}
    told = {key: value for key, value in told.items() if value != "gone"}
    rows = build(form, lines(tmp_path / "a.jsonl", {**GOOD[form], "id": "good"}, told))
    return rows[1] if len(rows) == 2 else "".join(rows.skipped)


def item(folder, text, *images):
    return Item(text=text, images=tuple(folder / image for image in images))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("images", [None, "pictures"])
def test_a_line_becomes_a_row(tmp_path, form, images):
    where = {} if form == "flag_embedding" or images is None else {"images": str(tmp_path / images)}
    folder = tmp_path / images if where else tmp_path
    path = lines(tmp_path / "a.jsonl", GOOD[form], {**GOOD[form], "id": 5})
    rows = build(form, path, positives=None, negatives=3, licence="CC0", **where)
    query, candidates, numbers = ROWS[form]
    assert rows[1] == {
        "id": "5",
        "query": item(folder, *query),
        "candidates": [item(folder, *each) for each in candidates],
        "candidate_ids": ["0", "1", "2"][: len(candidates)],
        "numbers": numbers,
    }
    assert rows[0] == {**rows[1], "id": "a.jsonl:1"}
    assert (rows.positives, rows.negatives, rows.numbers) == (None, 3, sorted(numbers))
    assert rows.licences[0].licence == "CC0" and rows.skipped == {}
    assert rows.noted == ({"repeated_candidate": 2} if form == "unime_v2" else {})
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


@pytest.mark.parametrize("form", FORMATS)
def test_a_source_is_for_candidates_and_checks_its_fields(tmp_path, form):
    spec = SOURCES.decode({"name": form, "path": "x"})
    assert spec.reads == "candidates" and (spec.positives, spec.negatives) == (1, 7)
    with pytest.raises(ValueError, match="negatives must be >= 0 or null, got -1"):
        SOURCES.get(form)(path="x", negatives=-1)
    with pytest.raises(DataError, match="none is no file"):
        build(form, tmp_path / "none")


@pytest.mark.parametrize("form", FORMATS)
def test_one_array_is_read_as_lines_are(tmp_path, form):
    told = [{**GOOD[form], "id": f"q{index}"} for index in range(4)]
    (tmp_path / "a.json").write_text(json.dumps(told, indent=1))
    assert list(build(form, tmp_path / "a.json")) == list(build(form, lines(tmp_path / "a.jsonl", *told)))


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_lines_are_counted(tmp_path, form):
    told = [*DAMAGED, GOOD[form], *DAMAGED]
    survives(build(form, lines(tmp_path / "a.jsonl", *told)), len([line for line in told if line]))


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_that_a_line_says_is_more_than_a_bad_row(tmp_path, form, data):
    told = [data.draw(spoiled(GOOD[form])) for _ in range(3)]
    survives(build(form, lines(tmp_path / "a.jsonl", GOOD[form], *told)), 4)


def test_a_query_may_have_no_negative_or_no_positive(tmp_path):
    for gone in ("gone", None, []):
        row = one("flag_embedding", tmp_path, neg=gone, neg_scores=gone)
        assert row["numbers"] == {"label": [1, 1], "teacher_score": [3, 2.5]}
        row = one("flag_embedding", tmp_path, pos=gone, pos_scores=gone)
        assert row["numbers"] == {"label": [0], "teacher_score": [-1]}
    for gone in ("gone", None, "", " "):
        assert one("mmeb", tmp_path, neg_text=gone, neg_image_path=gone)["numbers"] == {"label": [1]}
    assert one("unime_v2", tmp_path, hard_negatives=[], hard_negatives_scores=[])["numbers"] == {
        "label": [1], "judge_score": [0.9],
    }  # fmt: skip
    row = one("ms_swift", tmp_path, negative_messages="gone", negative_images="gone")
    assert row["numbers"] == {"label": [1]}
    rows = build("flag_embedding", lines(tmp_path / "a.jsonl", {"query": "q", "neg": ["a"]}))
    assert rows.noted == {"no_positive": 1} and len(rows) == 1
    assert one("flag_embedding", tmp_path, pos=[], neg=[], pos_scores=[], neg_scores=[]) == "no_candidates"


@pytest.mark.parametrize(
    ("form", "right", "wrong", "number"),
    [
        ("flag_embedding", "pos_scores", "neg_scores", "teacher_score"),
        ("unime_v2", "query_pos_scores", "hard_negatives_scores", "judge_score"),
    ],
)
def test_scores_are_of_all_candidates_or_there_is_no_such_number(tmp_path, form, right, wrong, number):
    assert number in one(form, tmp_path)["numbers"]
    for gone in ("gone", None, []):
        for changes in ({right: gone}, {wrong: gone}, {right: gone, wrong: gone}):
            assert set(one(form, tmp_path, **changes)["numbers"]) == {"label"}
    rows = build(form, lines(tmp_path / "a.jsonl", GOOD[form], {**GOOD[form], right: None}))
    assert rows.numbers == ["label"]
    good = GOOD[form][wrong]
    for scores in ([*good, 1], [1, 2, 3, 4]):
        assert one(form, tmp_path, **{wrong: scores}) == "uneven_scores"
    for score in ("1", None, float("nan"), 10**400, [1]):
        assert one(form, tmp_path, **{wrong: [*good[:-1], score]}) == "bad_number"
    assert one(form, tmp_path, **{wrong: "1"}) == "not_a_list"


def test_a_text_that_is_right_is_never_wrong_as_well(tmp_path):
    row = one("flag_embedding", tmp_path, neg=[" A ", "c", "B\n", "c"], neg_scores=[1, 2, 3, 4])
    assert [each.text for each in row["candidates"]] == ["a", "b", "c"]
    assert row["candidate_ids"] == ["0", "1", "3"]
    assert row["numbers"] == {"label": [1, 1, 0], "teacher_score": [3, 2.5, 2]}
    same = {"neg_text": MARK, "neg_image_path": "p.png", "pos_text": "", "pos_image_path": "p.png"}
    assert one("mmeb", tmp_path, **same)["numbers"] == {"label": [1]}
    same = {"negative_messages": [{"content": "ONE"}], "negative_images": None}
    assert one("ms_swift", tmp_path, **same)["numbers"] == {"label": [1]}


def test_lists_of_texts_and_pictures(tmp_path):
    right = {"pos_text": ["a", "b"], "pos_image_path": None}
    wrong = {"neg_text": ["c", "", "d", ""], "neg_image_path": ["", "e.png", "f.png", None]}
    row = one("mmeb", tmp_path, **right, **wrong)
    assert row["candidates"] == [
        item(tmp_path, "a"), item(tmp_path, "b"),
        item(tmp_path, "c"), item(tmp_path, "", "e.png"), item(tmp_path, "d", "f.png"),
    ]  # fmt: skip
    assert one("mmeb", tmp_path, neg_text=["c", "d"], neg_image_path=["e.png"]) == "uneven_lists"
    assert one("ms_swift", tmp_path, negative_images=["n.png"]) == "uneven_lists"
    assert one("flag_embedding", tmp_path, pos="a") == "not_a_list"


def test_a_picture_that_a_text_speaks_of_is_there(tmp_path):
    assert one("mmeb", tmp_path, qry_image_path="") == "missing_image"
    assert one("mmeb", tmp_path, qry="<|image_1|> and <|image_2|>") == "missing_image"
    row = one("mmeb", tmp_path, qry="<|image_1|> and <|image_2|>", qry_image_path=["a.png", "b.png"])
    assert row["query"] == item(tmp_path, "and", "a.png", "b.png")
    assert one("unime_v2", tmp_path, pos_image=None) == "missing_image"
    assert one("ms_swift", tmp_path, images=[]) == "missing_image"
    row = one("ms_swift", tmp_path, messages=[{"role": "user", "content": "no mark"}])
    assert row["query"] == item(tmp_path, "no mark", "q.png")


@pytest.mark.parametrize(
    ("form", "changes", "reason"),
    [
        ("flag_embedding", {"query": None}, "no_text"),
        ("flag_embedding", {"query": ["q"]}, "not_text"),
        ("flag_embedding", {"pos": ["a", ""]}, "no_text"),
        ("flag_embedding", {"pos": ["a", 5]}, "not_text"),
        ("mmeb", {"qry_image_path": 5}, "not_a_path"),
        ("mmeb", {"pos_text": {}}, "not_text"),
        ("unime_v2", {"hard_negatives": ["a"]}, "not_a_pair"),
        ("unime_v2", {"hard_negatives": [["a", None, "b"]]}, "not_a_pair"),
        ("ms_swift", {"messages": [{"role": "assistant", "content": "a"}]}, "no_message"),
        ("ms_swift", {"messages": "q"}, "not_a_message"),
        ("ms_swift", {"positive_messages": [[]]}, "no_message"),
        ("ms_swift", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "not_text"),
        *((form, {"id": {}}, "bad_id") for form in FORMATS),
        *((form, {"id": "good"}, "duplicate_id") for form in FORMATS),
    ],
)
def test_reasons(tmp_path, form, changes, reason):
    assert one(form, tmp_path, **changes) == reason


def test_every_row_keeps_the_promise(tmp_path):
    for form in FORMATS:
        check_row(one(form, tmp_path))
