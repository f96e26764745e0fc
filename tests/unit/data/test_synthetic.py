import pickle
from collections import Counter

import numpy as np
import pytest

from tests.unit.data.json_lines import check_row, lines
from vlalign.data.candidates import drawn
from vlalign.data.leakage import check_leakage, leaks
from vlalign.data.overlap import mean_overlap, word_overlap
from vlalign.registry import SOURCES
from vlalign.types import DataError, Item

COUNT = 40
MANY = {f"q{n}": [f"human {n} says word{n}", f"human {n} again"][: 1 + n % 2] for n in range(COUNT)}
WRITTEN = {f"q{n}": [f"machine {n} tells", f"machine {n} query {n}"][: 1 + n % 3 // 2] for n in range(COUNT)}


def human(path, queries=MANY):
    """Two wrong candidates stand beside the right ones of each query, one of them right for another."""
    told = []
    for id, right in queries.items():
        number = id.removeprefix("q")
        wrong = ["nothing", f"human {(int(number) + 1) % COUNT} again"]
        found = [{"text": text, "label": 1} for text in right] + [{"text": text} for text in wrong]
        told.append({"id": id, "query": f"query {number}", "candidates": found})
    return lines(path, *told)


def generation(id, text, generator="gen/a", **more):
    return {"query_id": id, "query": f"query {id[1:]}", "document": text, "generator": generator, **more}


@pytest.fixture
def folder(tmp_path):
    human(tmp_path / "human.jsonl")
    told = [
        generation(id, text, "gen/b" if id == "q3" else "gen/a")
        for id, texts in WRITTEN.items()
        for text in texts
    ]
    lines(tmp_path / "written.jsonl", *told)
    return tmp_path


def build(folder, **fields):
    data = {"name": "candidates", "path": str(folder / "human.jsonl")}
    told = {"name": "synthetic", "data": data, "documents": str(folder / "written.jsonl"), **fields}
    return SOURCES.decode(told).build()


def table(rows):
    """By query, its positives and its negatives."""
    found = {}
    for index in range(len(rows)):
        row = rows[index]
        check_row(row)
        pairs = list(zip(row["candidates"], row["numbers"]["label"], strict=True))
        found[row["id"]] = tuple([each.text for each, label in pairs if label == side] for side in (1, 0))
    return found


@pytest.mark.parametrize("negatives", [0, 1, 4, 17])
@pytest.mark.parametrize("rho", [0, 0.3, 0.5, 1])
def test_every_query_has_positives_of_one_kind_and_so_many_negatives(folder, rho, negatives):
    rows = build(folder, rho=rho, negatives=negatives)
    found = table(rows)
    chosen = {id for id, (right, _) in found.items() if right == WRITTEN[id]}
    assert found.keys() == MANY.keys() and len(chosen) == round(rho * COUNT)
    assert all(right == MANY[id] for id, (right, _) in found.items() if id not in chosen)
    documents = {text for id in MANY for text in (WRITTEN if id in chosen else MANY)[id]}
    for id, (right, wrong) in found.items():
        assert len(right) >= 1 and len(wrong) == len(set(wrong)) == negatives
        assert set(wrong) <= documents and not set(wrong) & {*MANY[id], *WRITTEN[id]}
    assert (rows.negatives, rows.positives, rows.numbers) == (negatives, 1, ["label", "synthetic"])
    assert not rows.skipped and not rows.noted


def test_where_a_document_is_from_is_kept(folder):
    own = {text for texts in WRITTEN.values() for text in texts}
    for rho in (0, 0.4, 1):
        rows = build(folder, rho=rho)
        for index in range(len(rows)):
            row = rows[index]
            told = zip(row["candidates"], row["candidate_ids"], row["numbers"]["synthetic"], strict=True)
            for each, id, synthetic in told:
                assert synthetic == (each.text in own) == ("/generated/" in id)
                assert each.text in (WRITTEN if synthetic else MANY)[id.partition("/")[0]]
            assert rho not in (0, 1) or set(row["numbers"]["synthetic"]) == {rho}
        names = [licence.name for licence in rows.licences]
        assert names[0] == "human.jsonl" and len(names) == (1 if rho == 0 else 3 if rho == 1 else len(names))
    count = sum(map(len, WRITTEN.values())) - 1
    assert names[1:] == [f"{count} documents by gen/a", "1 documents by gen/b"]


def test_the_seed_says_what_is_drawn(folder):
    one, again, other = (table(build(folder, rho=0.5, seed=seed)) for seed in (3, 3, 4))
    assert one == again != other
    assert one == table(pickle.loads(pickle.dumps(build(folder, rho=0.5, seed=3))))
    chosen = [{id for id, (right, _) in each.items() if right == WRITTEN[id]} for each in (one, other)]
    assert chosen[0] != chosen[1]
    counts = Counter(text for _, wrong in one.values() for text in wrong)
    assert sum(counts.values()) == 4 * COUNT and max(counts.values()) < 15  # no favourites


def test_a_greater_share_takes_the_same_queries_and_more(folder):
    before = set()
    for rho in np.linspace(0, 1, 9):
        found = table(build(folder, rho=float(rho)))
        chosen = {id for id, (right, _) in found.items() if right == WRITTEN[id]}
        assert before <= chosen
        before = chosen


def test_what_cannot_be_used_is_dropped_and_counted(folder):
    lines(
        folder / "written.jsonl",
        generation("q0", "  \n"),
        generation("q0", None),
        generation("q1", "one"),
        generation("q1", " ONE "),
        generation("q2", "two", query="another question"),
        b"no",
        generation("q3", 5),
        {"document": "x", "generator": "g"},
        generation("q4", "four", None),
        generation("q5", "five") | {"query": None},
        generation("q99", "nobody asked"),
    )
    rows = build(folder, negatives=1)
    assert {id: right for id, (right, _) in table(rows).items()} == {"q1": ["one"], "q5": ["five"]}
    without = [f"q{n}" for n in range(COUNT) if n not in (1, 5)]
    assert rows.skipped == {
        "empty_document": ["written.jsonl:1", "written.jsonl:2"],
        "repeated_document": ["written.jsonl:4"],
        "other_query": ["written.jsonl:5"],
        "not_json": ["written.jsonl:6"],
        "not_text": ["written.jsonl:7"],
        "no_query_id": ["written.jsonl:8"],
        "no_generator": ["written.jsonl:9"],
        "unknown_query": ["written.jsonl:11"],
        "not_generated": without,
    }
    assert len(build(folder, rho=0)) == COUNT
    lines(folder / "written.jsonl", generation("q0", ""))
    with pytest.raises(DataError, match="has no usable row; skipped: 1 empty_document, 40 not_generated"):
        build(folder)


def test_human_positives_are_texts(folder):
    told = [
        {"id": "q0", "query": "query 0", "candidates": [{"image": "a.png", "text": "x", "label": 1}]},
        {"id": "q1", "query": "query 1", "candidates": [{"text": "y", "label": 0}]},
        {
            "id": "q2",
            "query": "query 2",
            "candidates": [{"text": "z", "label": 1}, {"image": "a.png", "label": 1}],
        },
        {"id": "q3", "query": "query 3", "candidates": [{"text": "z", "label": 1}]},
    ]
    lines(folder / "human.jsonl", *told, b"no")
    rows = build(folder, rho=0, negatives=0)
    assert {id: right for id, (right, _) in table(rows).items()} == {"q2": ["z"], "q3": ["z"]}
    assert rows.skipped["no_positive"] == ["q0", "q1"] and rows.skipped["not_json"] == ["human.jsonl:5"]
    assert len(build(folder, rho=1, negatives=1)) == 4
    with pytest.raises(DataError, match="query 'q2': others have 0 documents that are not right for it"):
        build(folder, rho=0, negatives=1)


def naive_overlap(query, document):
    words = query.lower().split()
    return len([word for word in set(words) if word in document.lower().split()]) / len(set(words))


def test_overlap_of_words(folder):
    assert word_overlap("The cat, the CAT", "a cat!") == 0.5 and word_overlap("?", "a") == 0
    assert word_overlap("猫が", "犬が") == 0.5
    rows = build(folder, rho=0.5)
    sums = {0.0: [], 1.0: []}
    for id, (right, _) in table(rows).items():
        kind = float(right == WRITTEN[id])
        sums[kind] += [naive_overlap(f"query {id[1:]}", text) for text in right]
    assert mean_overlap(rows, "synthetic") == pytest.approx({k: np.mean(each) for k, each in sums.items()})
    assert mean_overlap(rows, "synthetic")[1] > mean_overlap(rows, "synthetic")[0]


def test_documents_that_repeat_their_query_can_be_left_out(folder):
    every, matched = build(folder), build(folder, max_overlap=0.5)
    assert len(matched) == COUNT and mean_overlap(every, "synthetic")[1] > 0.5
    assert mean_overlap(matched, "synthetic") == {1.0: 0.5}
    assert {id: right for id, (right, _) in table(matched).items()} == {
        id: each[:1] for id, each in WRITTEN.items()
    }
    assert len(matched.skipped["overlap"]) == sum(map(len, WRITTEN.values())) - COUNT
    humans = table(build(folder, max_overlap=0.4, rho=0))
    assert {id: right for id, (right, _) in humans.items()} == MANY
    dropped = {text for id in WRITTEN for text in WRITTEN[id][1:]}
    assert not dropped & {text for _, wrong in table(matched).values() for text in wrong}


def test_leaks_into_a_test_are_found(folder):
    test = lines(
        folder / "test.jsonl", {"id": "t", "query": "new", "candidates": [{"text": "Machine 7  tells"}]}
    )
    test = SOURCES.decode({"name": "candidates", "path": str(test)}).build()
    rows = build(folder)
    assert [leak.reason for leak in leaks(rows, test)] == ["document_text"]
    with pytest.raises(DataError, match=r"test.jsonl are in the training data synthetic \(.*written.jsonl\)"):
        check_leakage(rows, test)
    check_leakage(build(folder, rho=0), test)


def test_steps_draw_of_the_rows(folder):
    rows = build(folder, rho=0.5, negatives=3, positives=None)
    for index in range(len(rows)):
        labels = rows[index]["numbers"]["label"]
        places = drawn(labels, rows.positives, rows.negatives, np.random.default_rng(0))
        assert sorted(places) == list(range(len(labels)))
    assert rows.captions(0) == ("query 0",) and rows[0]["query"] == Item(text="query 0")


@pytest.mark.parametrize(
    "fields",
    [
        {"rho": 1.1},
        {"rho": -0.1},
        {"max_overlap": 2.0},
        {"negatives": -1},
        {"negatives": None},
        {"rho": None},
    ],
)
def test_fields_that_mean_nothing_are_refused(folder, fields):
    with pytest.raises(ValueError):
        build(folder, **fields)


def test_files_that_are_none_are_told(folder):
    with pytest.raises(DataError, match="none.jsonl is no file"):
        build(folder, documents=str(folder / "none.jsonl"))
    with pytest.raises(ValueError, match="data must be queries with candidates"):
        build(folder, data={"name": "jsonl", "path": "x"})
