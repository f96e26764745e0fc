import json
import pickle

import numpy as np
import pytest
from PIL import Image

from tests.unit.data.json_lines import check_row, lines
from vlalign.data.candidates import drawn
from vlalign.data.corpus import MadeCorpus
from vlalign.data.documents import TOGETHER, Documents
from vlalign.data.items import plain
from vlalign.data.leakage import leaks
from vlalign.data.sources.pairs import PairRows
from vlalign.data.subset import Subset
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item

CAPTIONS = ["a cat", "A  dog", "a bird", "a Dog ", "a fish", "a dog"]


@pytest.fixture
def folder(tmp_path):
    """Pictures of one grey each; the fifth is damaged. A picture may have several captions."""
    told = []
    for row, caption in enumerate(CAPTIONS):
        Image.new("RGB", (4, 4), (row * 10,) * 3).save(tmp_path / f"{row}.png")
        told.append({"id": f"r{row}", "image": f"{row}.png", "caption": [caption, "another"]})
    (tmp_path / "4.png").write_bytes(b"\x89PNG no picture")
    lines(tmp_path / "rows.jsonl", *told, {"id": "none", "image": "0.png", "caption": " "})
    return tmp_path


def build(folder, query, **fields):
    data = {"name": "jsonl", "path": str(folder / "rows.jsonl"), "id": "id"}
    return SOURCES.decode({"name": "pairs", "data": data, "query": query, **fields}).build()


def grey(item):
    """What stands on a picture, as its row."""
    (image,) = item.images
    assert image.mode == "RGB" and not item.text
    return image.getpixel((0, 0))[0] // 10


def test_a_caption_asks_for_its_picture(folder):
    rows = build(folder, "text", positives=None, negatives=3)
    assert (len(rows), rows.positives, rows.negatives, list(rows.numbers)) == (6, None, 3, ["label"])
    row = rows[0]
    assert (row["id"], row["query"], row["candidate_ids"]) == ("r0", Item(text="a cat"), ["r0"])
    assert grey(row["candidates"][0]) == 0 and row["numbers"] == {"label": [1.0]}
    assert rows.captions(1) == ("A  dog",) and rows.fields(4) == {"id": "r4"}
    assert rows.skipped == {"empty_caption": ["none"]} and rows.licences[0].name == "rows.jsonl"


def test_a_picture_asks_for_its_caption(folder):
    rows = build(folder, "image")
    assert grey(rows[2]["query"]) == 2 and rows[2]["candidates"] == [Item(text="a bird")]
    assert rows.captions(2) == ("",) and rows.fields(2) == {"id": "r2"}
    for index in (0, 1, 2, 3, 5):
        check_row(rows[index])


@pytest.mark.parametrize("query", ["text", "image"])
def test_pairs_of_one_caption_are_right_for_each_other(folder, query):
    rows = build(folder, query)
    texts = [" ".join(text.lower().split()) for text in CAPTIONS]
    for index in (0, 1, 2, 3, 5):
        row = rows[index]
        right = [f"r{other}" for other, text in enumerate(texts) if text == texts[index]]
        assert row["candidate_ids"] == right and row["numbers"] == {"label": [1.0] * len(right)}
        found = [f"r{grey(each)}" for each in row["candidates"]] if query == "text" else right
        assert found == right
        places = drawn(row["numbers"]["label"], None, 0, np.random.default_rng(0))
        assert sorted(places) == list(range(len(right)))
    assert rows.noted == {"shared_caption": 3}


def test_a_damaged_picture_is_a_bad_row_that_has_a_name(folder):
    asking, asked = build(folder, "image"), build(folder, "text")
    for rows in (asking, asked):
        with pytest.raises(BadRow):
            rows[4]
        assert rows.fields(4) == {"id": "r4"}
    assert asking.captions(4) == ("",) and asked.captions(4) == ("a fish",)
    assert [id for id, _ in asking.documents] == [f"r{row}" for row in range(6)]
    assert [(id, grey(each)) for id, each in asked.documents] == [(f"r{row}", row) for row in (0, 1, 2, 3, 5)]
    (skipped,) = asked.documents.skipped.values()
    assert skipped == ["r4"] and len(asked.documents) == 6


def test_the_corpus_is_the_other_side(folder):
    texts, images = (build(folder, query).documents for query in ("image", "text"))
    assert texts.items(["r3", "r0"]) == [Item(text="a Dog"), Item(text="a cat")]
    assert list(map(grey, images.items(["r5", "r1"]))) == [5, 1]
    assert images.lacks(["r1", "x"]) == ["x"]
    with pytest.raises(BadRow, match="has no document 'x'"):
        images.items(["x"])


def test_what_is_no_source_of_pairs_is_refused(folder):
    inner = {"name": "candidates", "path": str(folder / "rows.jsonl")}
    with pytest.raises(ValueError, match="has queries with candidates already"):
        SOURCES.decode({"name": "pairs", "data": inner, "query": "text"})
    with pytest.raises(ValueError):
        build(folder, "sound")
    with pytest.raises(ValueError, match="negatives must be >= 0"):
        build(folder, "text", negatives=-1)


def test_rows_cross_into_another_process(folder):
    for query in ("image", "text"):
        rows = build(folder, query)
        other = pickle.loads(pickle.dumps(rows))
        for index in (1, 3):
            assert other[index] == rows[index]


def test_leaks_are_found_between_pictures_that_no_file_has(folder):
    train, test = build(folder, "image"), build(folder, "text")
    assert ("r2", "r2/r2", "document_image") in leaks(train, test)
    assert ("r0/r0", "r0", "query_text") in leaks(train, test)
    assert leaks(train, test, documents=False) == []


def test_a_file_of_documents_is_walked_in_its_order(tmp_path):
    told = [{"id": f"d{row % 3000}", "text": f"text {row}"} for row in range(3001)]
    documents = Documents(
        lines(tmp_path / "c.jsonl", b"no", *told), "id", lambda told: Item(text=plain(told["text"]))
    )
    assert TOGETHER < 3000 == len(documents)
    assert list(documents) == [(f"d{row}", Item(text=f"text {row}")) for row in range(3000)]
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "d", "text": "x"}))
    with pytest.raises(BadRow, match="not the file that was looked through"):
        list(documents)


def test_a_corpus_is_walked_again_with_the_same_account():
    def make(place):
        if place % 2:
            raise BadRow("odd")
        return Item(text=str(place))

    corpus = MadeCorpus("numbers", ["a", "b", "c", "d"], make)
    for _ in range(2):
        assert list(corpus) == [("a", Item(text="0")), ("c", Item(text="2"))]
        assert corpus.skipped == {"odd": ["b", "d"]}


def test_two_pairs_of_one_name_are_refused(folder):
    spec = SOURCES.decode({"name": "pairs", "data": {"name": "emoji", "style": "google"}, "query": "text"})
    source = build(folder, "text").source
    with pytest.raises(DataError, match=r"pairs \(emoji, text\): two pairs have one id"):
        PairRows(spec, Subset(source, [0, 1, 0], {}, {}, what="x"))


@pytest.mark.net
def test_emoji_as_queries():
    data = {"name": "emoji", "style": "twitter", "captions": ["label"]}
    rows = SOURCES.decode({"name": "pairs", "data": data, "query": "text"}).build()
    assert len(rows) == 1588 == len(rows.documents) and rows.noted == {}
    assert rows.captions(0) == ("mahjong red dragon",)
    assert rows[0]["candidates"][0].images[0].size == (32, 32)


def test_another_corpus_is_mined_and_own_answers_are_found(folder):
    lines(
        folder / "more.jsonl",
        *({"id": f"m{at}", "image": f"{at}.png", "caption": f"more {at}"} for at in (0, 4)),
    )
    corpus = {"name": "jsonl", "path": str(folder / "more.jsonl"), "id": "id"}
    rows = pickle.loads(pickle.dumps(build(folder, "image", corpus=corpus)))
    assert dict(rows.documents) == {"m0": Item(text="more 0"), "m4": Item(text="more 4")}
    assert len(rows.documents) == 2 and not rows.documents.lacks(["r0", "m4"])
    assert rows[2]["candidates"] == [Item(text="a bird")]
    assert rows.documents.items(["m4", "r5"]) == [Item(text="more 4"), Item(text="a dog")]
    shown = build(folder, "text", corpus=corpus)
    assert {id: grey(each) for id, each in shown.documents} == {"m0": 0}  # the other is damaged
    assert shown.documents.skipped == {"not_an_image": ["m4"]}
    with pytest.raises(DataError, match="two pairs have one id"):
        build(folder, "image", corpus={**corpus, "path": str(folder / "rows.jsonl")})
    with pytest.raises(ValueError, match="corpus must be pictures with captions"):
        build(folder, "image", corpus={"name": "pairs", "data": corpus, "query": "text"})
