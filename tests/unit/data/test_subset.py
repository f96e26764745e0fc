import json

import pytest

from tests.unit.data import pictures
from vlalign.data.sources.sentences import split
from vlalign.data.subset import Subset
from vlalign.registry import SOURCES
from vlalign.types import DataError


@pytest.fixture
def source(tmp_path):
    """Four rows, one of them without a caption."""
    (tmp_path / "a.png").write_bytes(pictures.encoded(pictures.noise()))
    texts = [["one. Two!", "three"], ["No effusion."], [], ["four"]]
    lines = [
        json.dumps({"id": f"r{row}", "image": "a.png", "caption": caption})
        for row, caption in enumerate(texts)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return {"name": "jsonl", "path": str(tmp_path / "rows.jsonl"), "id": "id"}


def test_a_subset_is_its_rows_with_their_captions(source):
    whole = SOURCES.decode(source).build()
    part = Subset(whole, [2, 0], {0: ("three",)}, {"rule": ["r1"]}, what="it")
    assert len(part) == 2 and part.licences == whole.licences
    assert [part.fields(index)["id"] for index in range(2)] == ["r3", "r0"]
    assert [part.captions(index) for index in range(2)] == [("four",), ("three",)]
    assert part[1]["captions"] == ("three",) and part[1]["id"] == "r0" and part[1]["image"].size == (20, 12)
    assert part.skipped == {"empty_caption": ["r2"], "rule": ["r1"]}
    with pytest.raises(DataError, match="it leaves no row of 3; skipped: 1 empty_caption, 3 rule"):
        Subset(whole, [], {}, {"rule": ["r0", "r1", "r3"]}, what="it")


def test_a_source_of_sentences(source):
    cut = SOURCES.decode({"name": "sentences", "source": source}).build()
    assert [cut.captions(index) for index in range(3)] == [
        ("one.", "Two!", "three"), ("No effusion.",), ("four",),
    ]  # fmt: skip
    assert cut[0]["captions"] == cut.captions(0) and cut.skipped == {"empty_caption": ["r2"]}


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("The heart is normal.  No effusion? None!", ["The heart is normal.", "No effusion?", "None!"]),
        ("A nodule of 2.5 cm, e.g. the old one.", ["A nodule of 2.5 cm, e.g. the old one."]),
        ("1. Clear lungs.\n2. No change.", ["Clear lungs.", "No change."]),
        ('He said "stop." (It did not.) Then', ['He said "stop."', "(It did not.)", "Then"]),
        ("Findings\n\nnormal heart", ["Findings", "normal heart"]),
        ("心影正常。无积液！", ["心影正常。", "无积液！"]),
        ("no mark at\nthe end", ["no mark at the end"]),
        ("12. 7.", ["12. 7."]),
    ],
)
def test_sentences(text, sentences):
    assert list(split(text)) == sentences


def test_a_sentence_is_cut_no_further():
    for text in ("The heart is normal. No effusion.", "Mass, see no. 3 above! OK"):
        assert all(split(piece) == (piece,) for piece in split(text))
