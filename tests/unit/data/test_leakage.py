import json

import pytest

from tests.unit.data import pictures
from tests.unit.data.json_lines import lines
from vlalign.data.candidate_rows import CandidateRows
from vlalign.data.leakage import check_leakage, leaks
from vlalign.types import DataError


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("red", "red"), ("again", "red"), ("blue", "blue")):
        (tmp_path / f"{name}.png").write_bytes(pictures.encoded(pictures.plain(colour)))
    return tmp_path


def rows(folder, *told):
    """Queries and their candidates; a text with a dot is a picture."""

    def item(text, **more):
        words = text.split("|")
        images = [word for word in words if "." in word]
        return {"text": " ".join(word for word in words if "." not in word), "images": images, **more}

    found = [
        {"id": f"{name}", "query": item(query), "candidates": [item(each, id=each) for each in candidates]}
        for name, query, *candidates in told
    ]
    name = f"{abs(hash(json.dumps(found)))}.jsonl"
    return CandidateRows(lines(folder / name, *found), "not stated")


def test_queries_and_documents_that_both_have_are_found(folder):
    train = rows(
        folder, ("t1", "A  Cat", "felis", "dog"), ("t2", "again.png", "x"), ("t3", "how?|blue.png", "y")
    )
    test = rows(
        folder,
        ("e1", "a cat\n", "FELIS", "new"),
        ("e2", "red.png", "x|none.png"),
        ("e3", "how?", "why?|blue.png"),
        ("e4", "new", "Y", "y"),
        ("e5", "dog", "z"),
    )
    assert leaks(train, test) == [
        ("t1", "e1", "query_text"),
        ("t1/felis", "e1/FELIS", "document_text"),
        ("t2", "e2", "query_image"),
        ("t3", "e3/why?|blue.png", "document_image"),
        ("t3/y", "e4/Y", "document_text"),
        ("t1/dog", "e5", "query_text"),
    ]
    assert leaks(train, test, documents=False) == [("t1", "e1", "query_text"), ("t2", "e2", "query_image")]


def test_nothing_leaks_from_texts_beside_pictures_or_from_pictures_that_are_not_there(folder):
    train = rows(folder, ("t", "Find it.|red.png", "none.png", "Which?|gone.png"))
    test = rows(folder, ("e", "Find it.|blue.png", "none.png", "which?", "."))
    (folder / "folder.png").mkdir()
    assert leaks(train, test) == [] and leaks(rows(folder, ("a", "folder.png", "\0.png")), test) == []
    check_leakage(train, test)


def test_a_text_is_told_once_however_often_it_stands(folder):
    train = rows(folder, *((f"t{row}", "same", "doc") for row in range(5)))
    test = rows(folder, *((f"e{row}", "Same", "DOC") for row in range(5)))
    assert leaks(train, test) == [("t0", "e0", "query_text"), ("t0/doc", "e0/DOC", "document_text")]


def test_rows_that_are_gone_are_passed_over(folder):
    train, test = rows(folder, ("t", "a", "b")), rows(folder, ("e", "a", "c"))
    assert leaks(train, test)
    train.path.unlink()
    assert leaks(train, test) == []


def test_leakage_is_an_error_with_three_examples(folder):
    train = rows(folder, *((f"t{row}", f"q{row}", "d") for row in range(5)))
    test = rows(folder, *((f"e{row}", f"Q{row}", "e") for row in range(5)))
    with pytest.raises(DataError) as caught:
        check_leakage(train, test)
    assert str(caught.value) == (
        f"5 texts or pictures of the test {test.path} are in the training data {train.path} "
        "(query_text: e0 of the test is t0; query_text: e1 of the test is t1; "
        "query_text: e2 of the test is t2; and 2 more); take those rows out of either"
    )
    short = rows(folder, ("e", "q1", "x"))
    with pytest.raises(DataError, match=r"^1 texts .* \(query_text: e of the test is t1\); take"):
        check_leakage(train, short)
    with pytest.raises(DataError):
        check_leakage(train, short, documents=False)
