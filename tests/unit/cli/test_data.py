import pytest

from tests.unit.cli.test_main import run
from tests.unit.data import pictures
from tests.unit.data.json_lines import lines


@pytest.fixture
def folder(tmp_path):
    """Training data, a test that repeats a query of it, and one that shares only documents."""
    for name, colour in (("red", "red"), ("again", "red"), ("blue", "blue")):
        (tmp_path / f"{name}.png").write_bytes(pictures.encoded(pictures.plain(colour)))
    told = {
        "train": [{"query": "a red car", "candidates": [{"text": "car", "label": 1}]}]
        + [{"query": {"image": "red.png"}, "candidates": [{"text": "red"}]}],
        "words": [{"id": "w", "query": "A red  CAR", "candidates": [{"text": "new"}]}],
        "picture": [{"id": "p", "query": {"image": "again.png"}, "candidates": [{"text": "new"}]}],
        "corpus": [{"id": "c", "query": {"image": "blue.png"}, "candidates": [{"text": "Car"}]}],
        "fresh": [{"id": "f", "query": {"image": "blue.png"}, "candidates": [{"text": "new"}]}],
    }
    for name, rows in told.items():
        lines(tmp_path / f"{name}.jsonl", *rows)
    return tmp_path


@pytest.mark.parametrize(
    ("test", "code", "told"),
    [
        ("words", 1, "query_text: w of the test is train.jsonl:1"),
        ("picture", 1, "query_image: p of the test is train.jsonl:2"),
        ("corpus", 1, "document_text: c/0 of the test is train.jsonl:1/0"),
        ("fresh", 0, "no text or picture of"),
    ],
)
def test_leaks_are_a_sentence_and_exit_code_1(folder, test, code, told, capsys):
    said = run(
        "data", "leaks", *(str(folder / f"{x}.jsonl") for x in ("train", test)), code=code, capsys=capsys
    )
    assert told in said and "Traceback" not in said
    assert ("take those rows out of either" in said) == bool(code)


def test_documents_may_be_shared_by_choice(folder, capsys):
    words = ["data", "leaks", str(folder / "train.jsonl"), str(folder / "corpus.jsonl"), "--queries-only"]
    assert "no query of" in run(*words, capsys=capsys)
    words[3] = str(folder / "words.jsonl")
    assert "query_text" in run(*words, code=1, capsys=capsys)


def test_a_file_that_is_not_there_is_another_mistake(folder, capsys):
    said = run("data", "leaks", str(folder / "train.jsonl"), str(folder / "none"), code=2, capsys=capsys)
    assert "is no file" in said and "Traceback" not in said
