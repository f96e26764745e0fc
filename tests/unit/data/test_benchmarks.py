"""Sets of MRB and of MMEB from tiny folders, and Parquet files as what files of lines are."""

import pickle
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data.json_lines import check_row, lines
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item

MARK = "<|image_1|>\n"
SET = [  # as MMEB-eval has a set of classes: no picture among the targets
    {
        "qry_text": MARK + "Which thing is this?\n",
        "qry_img_path": "Things/1.jpg",
        "tgt_text": ["cat", "dog", "Cat", "cow"],
        "tgt_img_path": ["", "", "", ""],
    },
    {
        "qry_text": MARK + "Which thing is this?\n",
        "qry_img_path": "Things/2.jpg",
        "tgt_text": ["dog", "cat"],
        "tgt_img_path": ["", ""],
    },
]
OF_V2 = {  # and as MMEB_Test_Instruct has one of pictures
    "qry_inst": "Find a picture of the caption. ",
    "qry_text": "a cat",
    "qry_img_path": "",
    "tgt_inst": MARK + "Represent the picture.",
    "tgt_text": ["", ""],
    "tgt_img_path": ["Pictures/1.jpg", "Pictures/2.jpg"],
}


def mmeb(path, **fields):
    return SOURCES.decode({"name": "mmeb_eval", "path": str(path), **fields}).build()


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1)
    return path


@pytest.fixture
def things(tmp_path):
    table(tmp_path / "MMEB-eval" / "Things" / "test-00000-of-00001.parquet", SET)
    return tmp_path / "MMEB-eval"


def test_the_first_target_is_right(things):
    rows = mmeb(things / "Things", positives=None, negatives=None)
    assert len(rows) == 2 and rows.numbers == ["label"] and rows.skipped == {}
    assert rows[0] == {
        "id": "test-00000-of-00001.parquet:1",
        "query": Item(text="Which thing is this?", images=(things / "Things" / "1.jpg",)),
        "candidates": [Item(text="cat"), Item(text="dog"), Item(text="cow")],
        "candidate_ids": ["0", "1", "3"],
        "numbers": {"label": [1, 0, 0]},
    }
    assert rows[1]["numbers"] == {"label": [1, 0]} and rows.noted == {"repeated_candidate": 1}
    assert rows.licences[0].name == "Things"
    assert list(pickle.loads(pickle.dumps(rows))) == list(rows)
    for row in rows:
        check_row(row)
    rows = mmeb(things / "Things", images="unpacked")
    assert str(rows[0]["query"].images[0]) == "unpacked/Things/1.jpg"


def test_targets_are_pictures_and_instructions_stand_before_the_query(tmp_path):
    rows = mmeb(lines(tmp_path / "set.jsonl", OF_V2, OF_V2 | {"tgt_text": ["x", MARK + "y"]}))
    pictures = [tmp_path / "Pictures" / f"{at}.jpg" for at in (1, 2)]
    assert rows[0]["query"] == Item(text="Find a picture of the caption. a cat")
    assert rows[0]["candidates"] == [Item(images=(each,)) for each in pictures]
    assert rows[1]["candidates"] == [
        Item(text=text, images=(each,)) for text, each in zip("xy", pictures, strict=True)
    ]


def test_what_is_no_row_of_mmeb_is_counted_and_never_another_right_target(tmp_path):
    told = [
        OF_V2,
        OF_V2 | {"tgt_img_path": ["", "Pictures/2.jpg"]},
        OF_V2 | {"tgt_text": ["x"]},
        OF_V2 | {"tgt_text": "x"},
        OF_V2 | {"tgt_text": [], "tgt_img_path": []},
        OF_V2 | {"qry_text": MARK + "What?"},
        OF_V2 | {"qry_inst": 5},
    ]
    rows = mmeb(lines(tmp_path / "set.jsonl", *told))
    assert len(rows) == 1 and {reason: len(names) for reason, names in rows.skipped.items()} == {
        "no_text": 1, "uneven_lists": 1, "not_a_list": 1, "no_candidates": 1, "missing_image": 1,
        "not_text": 1,
    }  # fmt: skip


def test_a_folder_that_is_no_set_is_told(things):
    with pytest.raises(DataError, match=r"expected one test-\*.parquet .* got 0; there is Things"):
        mmeb(things)
    table(things / "Things" / "test-00001-of-00002.parquet", SET)
    with pytest.raises(DataError, match="got 2"):
        mmeb(things / "Things")
    with pytest.raises(DataError, match="is no file"):
        mmeb(things / "Nothing")


def test_a_parquet_file_is_read_as_the_lines_would_be(tmp_path):
    told = [{"id": f"q{at}", "qry": "q", "pos_text": f"p{at}", "neg_text": "n"} for at in range(5)]
    of = {"name": "mmeb", "positives": 1}
    one, other = (
        SOURCES.decode({**of, "path": str(path)}).build()
        for path in (table(tmp_path / "a.parquet", told), lines(tmp_path / "a.jsonl", *told))
    )
    assert list(one) == list(other) and len(one) == 5


def test_values_that_json_has_not_are_never_texts(tmp_path):
    good = {"id": "good", "qry": "q", "pos_text": "p", "neg_text": "n", "pos_image_path": None}
    bad = [{**good, "id": "bytes", "pos_image_path": b"\x89PNG"}]
    rows = SOURCES.decode({"name": "mmeb", "path": str(table(tmp_path / "a.parquet", [good, *bad]))}).build()
    assert len(rows) == 1 and rows.skipped == {"not_a_path": ["a.parquet:2"]}
    dated = [{**good, "neg_text": None, "qry": date(2024, 1, 1)}]
    with pytest.raises(DataError, match=r"no line of it can be used \(not_text 1\)"):
        SOURCES.decode({"name": "mmeb", "path": str(table(tmp_path / "b.parquet", dated))}).build()


def test_a_date_that_python_has_not_costs_no_more_than_the_rows_that_say_it(tmp_path):
    days = pa.array([2**30, 0], pa.int32()).cast(pa.date32())
    table = {"qry": ["q", "r"], "pos_text": ["p", "p"], "neg_text": ["n", "n"]}
    pq.write_table(pa.table(table | {"made": days, "several": [[x] for x in days]}), tmp_path / "a.parquet")
    rows = SOURCES.decode({"name": "mmeb", "path": str(tmp_path / "a.parquet")}).build()
    assert [row["query"].text for row in rows] == ["q", "r"]
    pq.write_table(pa.table(table | {"qry": days}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"no line of it can be used \(not_text 2\)"):
        SOURCES.decode({"name": "mmeb", "path": str(tmp_path / "b.parquet")}).build()


def test_damaged_and_changed_parquet_files_are_told(things):
    path = things / "Things" / "test-00000-of-00001.parquet"
    rows = mmeb(things / "Things")
    assert rows[1]["numbers"] == {"label": [1, 0]}
    table(path, SET[:1])
    with pytest.raises(BadRow, match="is not the file that was looked through"):
        rows[1]
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        mmeb(things / "Things")
    with pytest.raises(BadRow, match="is not the file"):
        rows[0]
    path.unlink()
    with pytest.raises(BadRow, match="is no file"):
        rows[0]


def test_bytes_that_are_no_utf8_cost_their_row(tmp_path):
    texts = pa.array([b"q", b"caf\xe9"], pa.binary()).view(pa.string())
    fine = pa.array(["p", "p"])
    pq.write_table(pa.table({"qry": texts, "pos_text": fine}), tmp_path / "a.parquet")
    rows = SOURCES.decode({"name": "mmeb", "path": str(tmp_path / "a.parquet")}).build()
    assert len(rows) == 1 and rows.skipped == {"not_utf8": ["a.parquet:2"]}


@pytest.fixture
def mrb(tmp_path):
    """Of query 2 a relevant document was not retrieved."""
    folder = tmp_path / "mrb" / "small"
    folder.mkdir(parents=True)
    lines(
        folder / "corpus.jsonl",
        {"_id": "d1", "title": "T", "text": "one"},
        {"_id": "d2", "image": "pictures/2.png"},
        {"_id": "d3", "text": "three", "image": "pictures/3.png"},
    )
    lines(folder / "queries.jsonl", {"_id": "1", "text": "first"}, {"_id": "2", "image": "pictures/q.png"})
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\td2\t1\n2\td3\t1\n2\td1\t2\n")
    run = ["1 Q0 d3 1 0.9 t", "1 Q0 d2 2 0.5 t", "2 Q0 d1 1 0.8 t", "2 Q0 d2 2 0.1 t"]
    (folder / "run.trec").write_text("\n".join(run) + "\n")
    return folder


def test_a_set_of_mrb_is_a_folder(mrb):
    rows = SOURCES.decode({"name": "mrb", "path": str(mrb), "licence": "CC0"}).build()
    assert [row["candidate_ids"] for row in rows] == [["d3", "d2"], ["d1", "d2"]]
    assert rows[0]["numbers"] == {"label": [0, 1], "score": [0.9, 0.5]} and "lost" not in rows[0]
    assert rows[1]["query"] == Item(images=(mrb / "pictures" / "q.png",))
    assert rows[1]["candidates"] == [Item(text="T one"), Item(images=(mrb / "pictures" / "2.png",))]
    assert rows[1]["lost"] == {"d3": 1} and rows.noted == {"not_retrieved": 1}
    assert rows.licences[0].name == "small" and rows.licences[0].licence == "CC0"
    rows = SOURCES.decode({"name": "mrb", "path": str(mrb), "depth": 1, "images": "x"}).build()
    assert rows[1]["candidate_ids"] == ["d1"] and rows[0]["lost"] == {"d2": 1}
    assert str(rows[1]["query"].images[0]) == "x/pictures/q.png"


def test_what_a_set_of_mrb_lacks_is_told(mrb):
    (mrb / "run.trec").unlink()
    with pytest.raises(DataError, match=r"run.trec is no file; in its folder there is corpus.jsonl, qrels"):
        SOURCES.decode({"name": "mrb", "path": str(mrb)}).build()
    with pytest.raises(ValueError, match="depth must be >= 1, got 0"):
        SOURCES.get("mrb")(path="x", depth=0)
