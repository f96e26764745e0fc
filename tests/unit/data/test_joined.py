import json

import pytest
from PIL import Image

from tests.unit.data.json_lines import lines
from vlalign.data.bad_rows import name_of
from vlalign.data.sources.joined import Joined
from vlalign.registry import SOURCES, encode
from vlalign.types import BadRow


def rows(folder, name, ids, **fields):
    """A jsonl of grey pictures, one of them damaged, and a row without a caption."""
    (folder / name).mkdir()
    told, own = [], {"kind": "x"} if fields else {}
    for place, id in enumerate(ids):
        Image.new("RGB", (4, 4), (place,) * 3).save(folder / name / f"{place}.png")
        told.append({"id": id, "image": f"{place}.png", "caption": [f"{name} {id}", "other"], **own})
    (folder / name / "0.png").write_bytes(b"\x89PNG no picture")
    path = lines(folder / name / "rows.jsonl", *told, {"id": "none", "image": "0.png", "caption": " ", **own})
    return {"name": "jsonl", "path": str(path), "id": "id", **fields}


@pytest.fixture
def told(tmp_path):
    return [rows(tmp_path, "one", ["a", "b", "c"], label="kind"), rows(tmp_path, "two", ["b", "d"])]


def build(told):
    return SOURCES.decode({"name": "joined", "of": told}).build()


def test_rows_of_all_in_order_each_from_its_own(told):
    source = build(told)
    assert len(source) == 5
    assert [source.captions(index)[0] for index in range(5)] == ["one a", "one b", "one c", "two b", "two d"]
    for index, (level, caption) in {1: (1, "one b"), 2: (2, "one c"), 4: (1, "two d")}.items():
        row = source[index]
        assert row["image"].getpixel((0, 0)) == (level,) * 3 and row["captions"][0] == caption
    for index in (0, 3):
        with pytest.raises(BadRow):
            source[index]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            source.captions(index)


def test_ids_differ_and_fields_are_those_that_all_have(told):
    source = build(told)
    assert [source.fields(index) for index in range(5)] == [{"id": id} for id in ("a", "b", "c", "2/b", "d")]
    assert [source[index]["id"] for index in (1, 4)] == ["b", "d"] and "label" not in source[1]
    assert name_of(source, 3) == "2/b"
    alone = build(told[:1])
    assert alone.fields(1) == SOURCES.decode(told[0]).build().fields(1) == {"id": "b", "label": "x"}
    assert alone[1]["label"] == "x"


def test_what_was_skipped_and_licences_are_of_all(told):
    source = build(told)
    assert source.skipped == {"empty_caption": ["none", "none"]}
    assert len(source.licences) == 2 and build([told[0]] * 2).licences == build(told[:1]).licences


def test_it_is_nested_and_survives_a_recipe(told):
    spec = SOURCES.decode({"name": "joined", "of": [told[1], {"name": "joined", "of": told}]})
    again = SOURCES.decode(json.loads(json.dumps(encode(spec, component=True))))
    assert again == spec and isinstance(again.of[1], Joined)
    source = again.build()
    assert [source.fields(index)["id"] for index in range(7)] == ["b", "d", "a", "2/b", "c", "2/2/b", "2/d"]


def test_other_rows_are_refused(told):
    with pytest.raises(ValueError, match="of is empty"):
        build([])
    with pytest.raises(ValueError, match="pictures with captions, and candidates has queries"):
        build([told[0], {"name": "candidates", "path": "x.jsonl"}])
