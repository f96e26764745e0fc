"""Documents by id, TREC's files, and the sources that are made of them."""

import json
import pickle

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.data.json_lines import DAMAGED, lines, odd, spoiled, survives
from vlalign.data import documents as documents_module
from vlalign.data.rankings import judgements, rankings
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item

TEVATRON = {
    "query_id": "q1",
    "query_text": "a cat",
    "query_image": None,
    "positive_document_ids": ["d1"],
    "negative_document_ids": ["d3", 2],
}


def tevatron(folder, *queries, **fields):
    path = lines(folder / "q.jsonl", *queries)
    spec = {"name": "tevatron", "path": str(path), "corpus": str(folder / "c.jsonl"), **fields}
    return SOURCES.decode(spec).build()


@pytest.fixture
def corpus(tmp_path):
    """Three documents, in an order that is not that of their ids."""
    lines(
        tmp_path / "c.jsonl",
        {"docid": "d3", "document_text": "drei", "document_image": "3.png"},
        {"docid": "d1", "document_text": "eins 🦙"},
        {"docid": 2, "document_text": None, "document_image": "2.png"},
    )
    return tmp_path


def test_documents_come_by_their_ids(corpus):
    rows = tevatron(corpus, TEVATRON, {**TEVATRON, "query_id": 5, "negative_document_ids": None})
    assert rows[0] == {
        "id": "q1",
        "query": Item(text="a cat"),
        "candidates": [
            Item(text="eins 🦙"),
            Item(text="drei", images=(corpus / "3.png",)),
            Item(images=(corpus / "2.png",)),
        ],
        "candidate_ids": ["d1", "d3", "2"],
        "numbers": {"label": [1, 0, 0]},
    }
    assert rows[1]["id"] == "5" and rows[1]["candidate_ids"] == ["d1"] and not rows.skipped
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
    rows = tevatron(corpus, TEVATRON, images=str(corpus / "x"))
    assert rows[0]["candidates"][2] == Item(images=(corpus / "x" / "2.png",))


def test_a_document_that_is_named_again_is_never_wrong(corpus):
    rows = tevatron(corpus, {**TEVATRON, "negative_document_ids": ["d1", "2", 2, "d3"]})
    assert rows[0]["candidate_ids"] == ["d1", "2", "d3"] and rows[0]["numbers"] == {"label": [1, 0, 0]}
    assert rows.noted == {"repeated_candidate": 1}


def test_a_missing_document_costs_the_query(corpus):
    told = [{**TEVATRON, "query_id": name, "negative_document_ids": [name]} for name in ("d3", "d4", "")]
    rows = tevatron(corpus, *told, {"query_text": "q"}, {**TEVATRON, "positive_document_ids": "d1"})
    assert len(rows) == 1 and rows.skipped == {
        "missing_document": ["q.jsonl:2"], "bad_id": ["q.jsonl:3"], "no_candidates": ["q.jsonl:4"],
        "not_a_list": ["q.jsonl:5"],
    }  # fmt: skip


def test_bad_lines_of_a_corpus_are_counted_and_cost_the_queries_that_name_them(tmp_path):
    good = [{"docid": name, "document_text": name} for name in ("d1", "d3", "2", "x")]
    bad = [{"document_text": "a"}, {"docid": "y"}, {"docid": [], "document_text": "a"}, good[3] | {"a": 1}]
    lines(tmp_path / "c.jsonl", *DAMAGED, *good, *bad)
    rows = tevatron(tmp_path, TEVATRON, {**TEVATRON, "positive_document_ids": ["y"]})
    assert {reason: len(names) for reason, names in rows.skipped.items()} == {
        "not_json": 8, "not_utf8": 2, "no_id": 2, "no_text": 1, "bad_id": 1, "duplicate_id": 1,
        "missing_document": 1,
    }  # fmt: skip
    assert rows.skipped["duplicate_id"] == [f"c.jsonl:{len(DAMAGED) + 8}"] and len(rows) == 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoiled(TEVATRON), st.fixed_dictionaries({"docid": odd, "document_text": odd, "document_image": odd}))
def test_nothing_that_two_files_say_is_more_than_a_bad_row(corpus, query, document):
    good = [{"docid": name, "document_text": name} for name in ("d1", "d3", "2")]
    lines(corpus / "c.jsonl", *good, document)
    rows = tevatron(corpus, {**TEVATRON, "query_id": "good"}, query)
    lost = [name for names in rows.skipped.values() for name in names if name.startswith("c.jsonl")]
    survives(rows, 2 + len(lost))


def test_files_without_anything_are_told(tmp_path):
    with pytest.raises(DataError, match="c.jsonl is no file"):
        tevatron(tmp_path, TEVATRON)
    for content, told in (((), "it is empty"), (DAMAGED, "not_json 8, not_utf8 2, no_id 1")):
        lines(tmp_path / "c.jsonl", *content)
        with pytest.raises(DataError, match=rf"c.jsonl: no document of it can be used \({told}\)"):
            tevatron(tmp_path, TEVATRON)


def test_two_ids_of_one_hash_are_told_apart(corpus, monkeypatch):
    monkeypatch.setattr(documents_module, "hash63", lambda id: 5)
    alone = {**TEVATRON, "query_id": "alone", "positive_document_ids": ["d3"], "negative_document_ids": []}
    rows = tevatron(corpus, alone, TEVATRON)
    assert rows[0]["candidate_ids"] == ["d3"] and len(rows.skipped["duplicate_id"]) == 2
    with pytest.raises(BadRow, match="has no document 'd1' and 1 more$"):
        rows[1]


def test_a_corpus_that_was_changed_gives_bad_rows(corpus):
    rows = tevatron(corpus, TEVATRON)
    lines(corpus / "c.jsonl", {"docid": "d1", "document_text": "x"})
    with pytest.raises(BadRow, match="c.jsonl is not the file"):
        rows[0]
    assert rows.fields(0) == {"id": "q1"}


def test_judgements_of_both_forms(tmp_path):
    path = tmp_path / "qrels"
    for content in (
        "query-id\tcorpus-id\tscore\nq 1\td1\t2\nq2\td 1\t0\n\nq 1\td2\t-1\n",
        "\ufeffq 1\t0\td1\t2\r\nq2\t0\td 1\t0\r\nq 1\tQ0\td2\t-1.0",
    ):
        path.write_text(content, encoding="utf-8")
        found, skipped = judgements(path)
        assert found == {"q 1": {"d1": 2, "d2": -1}, "q2": {"d 1": 0}} and skipped == {}
    path.write_text("q1 0 d1 1\nq1 0 d2 0\n")
    assert judgements(path)[0] == {"q1": {"d1": 1, "d2": 0}}


def test_damaged_judgements_are_counted(tmp_path):
    path = tmp_path / "qrels"
    path.write_bytes(b"q d 1\nq d\nq d x\n\xff d 1\nq d nan\nq d 0\n\td\t1\nq d 1 2 3\nq e 1\n")
    found, skipped = judgements(path)
    assert found == {"q": {"d": 1, "e": 1}} and skipped == {
        "bad_judgement": ["qrels:2", "qrels:8"], "bad_number": ["qrels:3", "qrels:5"],
        "not_utf8": ["qrels:4"], "duplicate_judgement": ["qrels: q d"], "no_id": ["qrels:7"],
    }  # fmt: skip


@pytest.mark.parametrize("read", [judgements, lambda path: rankings(path, None)])
def test_tables_without_anything_are_told(tmp_path, read):
    for content, told in ((b"", "it is empty"), (b"\xff\n\xff", "not_utf8 2")):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DataError, match=rf"x: no line of it can be used \({told}\)"):
            read(tmp_path / "x")
    with pytest.raises(DataError, match="none cannot be read"):
        read(tmp_path / "none")


def test_rankings_go_by_score_and_then_by_the_greater_id(tmp_path):
    path = tmp_path / "run"
    rows = [
        "a Q0 d1 1 0.5 t",
        "a Q0 d3 2 0.5 t",
        "b\tQ0\tx\t1\t-1e3\tmy tag",
        "a Q0 d2 3 0.9 t",
        "a Q0 d3 4 0.7 t",
    ]
    path.write_text("\n".join(rows))
    found, skipped = rankings(path, None)
    assert {query: (each.ids, list(each.scores)) for query, each in found.items()} == {
        "a": (["d2", "d3", "d1"], [0.9, 0.7, 0.5]), "b": (["x"], [-1000.0]),
    }  # fmt: skip
    assert skipped == {"duplicate_document": ["run: a d3"]}
    assert rankings(path, 2)[0]["a"].ids == ["d2", "d3"]
    path.write_text("a Q0 d1 1 0.5 t\na Q0 d2 2 0.5 t\n")
    assert rankings(path, 1)[0]["a"].ids == ["d2"]


def test_damaged_rankings_are_counted(tmp_path):
    path = tmp_path / "run"
    path.write_bytes(b"qid Q0 docid rank score tag\na Q0 d 1 0.5\na Q0 d 1 nan t\n\n\xff\na Q0 d 1 1 t\n")
    found, skipped = rankings(path, 5)
    assert found["a"].ids == ["d"] and skipped == {
        "bad_number": ["run:1", "run:3"], "bad_rank": ["run:2"], "not_utf8": ["run:5"],
    }  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary() | st.lists(st.sampled_from([b"a", b"\t", b" ", b"1", b"Q0", b"\n", b"\xff"])).map(b"".join)
)
def test_no_table_is_more_than_bad(tmp_path, content):
    (tmp_path / "x").write_bytes(content + b"\nq\t0\td\t1\nq Q0 d 1 1 t\n")
    assert "d" in judgements(tmp_path / "x")[0]["q"] and "d" in rankings(tmp_path / "x", None)[0]["q"].ids


@pytest.fixture
def beir(tmp_path):
    """Queries 1 and 2 are judged and ranked, 3 is only ranked, 4 only judged, 5 neither."""
    lines(
        tmp_path / "corpus.jsonl",
        *({"_id": f"d{n}", "title": "T" * (n % 2), "text": f"text {n}", "metadata": {}} for n in range(8)),
        {"_id": "picture", "image": "p.png"},
    )
    lines(tmp_path / "queries.jsonl", *({"_id": str(n), "text": f"query {n}"} for n in range(1, 6)))
    (tmp_path / "qrels").mkdir()
    judged = ["1\td1\t2", "1\td2\t0", "1\td7\t1", "2\td0\t1", "4\td0\t1", "4\tgone\t1"]
    (tmp_path / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]))
    ranked = [("1", "d3", 3), ("1", "d1", 2), ("1", "picture", 1), ("2", "d0", 1), ("3", "d5", 0.25)]
    text = "".join(f"{query} Q0 {document} 0 {score} t\n" for query, document, score in ranked)
    (tmp_path / "run.trec").write_text(text)
    return tmp_path


def source(folder, **fields):
    spec = {"name": "beir", "path": str(folder), "run": str(folder / "run.trec"), "licence": "CC0", **fields}
    return SOURCES.decode(spec).build()


def test_candidates_are_those_of_the_run(beir):
    rows = source(beir, positives=None)
    assert [each["id"] for each in rows] == ["1", "2", "3"] and rows.numbers == ["label", "score"]
    assert rows[0] == {
        "id": "1",
        "query": Item(text="query 1"),
        "candidates": [Item(text="T text 3"), Item(text="T text 1"), Item(images=(beir / "p.png",))],
        "candidate_ids": ["d3", "d1", "picture"],
        "numbers": {"label": [0, 2, 0], "score": [3, 2, 1]},
        "lost": {"d7": 1},
    }
    assert "lost" not in rows[1]
    assert rows[2]["numbers"] == {"label": [0], "score": [0.25]}
    assert rows.noted == {"not_retrieved": 1, "no_relevant": 1, "no_positive": 1}
    assert rows.skipped == {"not_retrieved": ["queries.jsonl:4"]}
    assert rows.licences[0].name == beir.name and rows.licences[0].licence == "CC0"
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)


def test_the_depth_is_of_the_run(beir):
    rows = source(beir, depth=1)
    assert rows[0]["candidate_ids"] == ["d3"] and rows[0]["numbers"] == {"label": [0], "score": [3]}
    assert rows[0]["lost"] == {"d1": 2, "d7": 1}
    assert rows.noted == {"not_retrieved": 1, "no_relevant": 1, "no_positive": 2}
    assert source(beir, depth=None)[0] == source(beir)[0]
    with pytest.raises(ValueError, match="depth must be >= 1 or null, got 0"):
        SOURCES.get("beir")(path="x", run="y", depth=0)


def test_relevant_documents_that_were_not_retrieved_can_be_added(beir):
    rows = source(beir, depth=1, missing="add")
    assert [each["id"] for each in rows] == ["1", "2", "3", "4"] and rows.skipped == {}
    assert rows[0]["candidate_ids"] == ["d3", "d1", "d7"]
    assert rows[0]["numbers"] == {"label": [0, 2, 1], "score": [3, 3, 3]}
    assert "lost" not in rows[0] and rows[3]["lost"] == {"gone": 1}
    assert rows[3]["candidate_ids"] == ["d0"] and rows[3]["numbers"] == {"label": [1], "score": [0]}
    assert rows.noted == {"no_relevant": 1, "no_positive": 1, "not_retrieved": 1}  # the last: `gone` of 4


def test_what_the_files_of_a_folder_lack_is_counted(beir):
    with (beir / "run.trec").open("a") as file:
        file.write("2 Q0 nowhere 0 0.5 t\n9 Q0 d1 0 1 t\nbroken\n")
    lines(
        beir / "queries.jsonl",
        *({"_id": str(n), "text": "x"} for n in (1, 2, 3, 3)),
        {"text": "x"},
        {"_id": "2"},
        {"_id": "of no split"},
    )
    rows = source(beir)
    assert [each["id"] for each in rows] == ["1", "3"]
    assert rows.skipped == {
        "missing_document": ["queries.jsonl:2"], "duplicate_id": ["queries.jsonl:4"],
        "no_id": ["queries.jsonl:5"], "no_text": ["queries.jsonl:6"], "bad_rank": ["run.trec:8"],
        "missing_query": ["9", "4"],
    }  # fmt: skip


def test_files_of_trec_and_other_splits(beir):
    (beir / "qrels" / "dev.txt").write_text("5 0 d0 1\n")
    rows = source(beir, qrels="qrels/dev.txt", missing="add")
    assert [each["id"] for each in rows] == ["1", "2", "3", "5"] and rows[3]["numbers"]["label"] == [1]
    with pytest.raises(
        DataError, match=r"qrels/dev.tsv is no file; in its folder there is dev.txt, test.tsv"
    ):
        source(beir, qrels="qrels/dev.tsv")
    with pytest.raises(DataError, match="none is no file"):
        source(beir, run=str(beir / "none"))
    with pytest.raises(DataError, match="corpus.jsonl is no file; in its folder there is nothing"):
        source(beir / "elsewhere")


def test_a_run_of_other_queries_is_told(beir):
    (beir / "qrels" / "test.tsv").write_text("x\td1\t1\n")
    (beir / "run.trec").write_text("x Q0 d1 1 1 t\n")
    with pytest.raises(DataError, match=r"queries.jsonl: no line of it can be used \(5 are of other sets\)"):
        source(beir)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=odd, document=odd, text=odd, missing=st.sampled_from(["add", "keep_out"]))
def test_nothing_that_a_folder_says_is_more_than_bad(beir, query, document, text, missing):
    lines(beir / "queries.jsonl", {"_id": "1", "text": "x"}, {"_id": query, "text": text, "image": document})
    corpus = [{"_id": name, "text": name} for name in ("d1", "d3", "d7", "picture")]
    lines(beir / "corpus.jsonl", *corpus, {"_id": document, "title": text, "text": query, "image": text})
    for row in source(beir, missing=missing):
        json.dumps({**row, "query": row["query"].text, "candidates": []}, allow_nan=False)
