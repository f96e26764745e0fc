import io

import pytest
from PIL import Image

from tests.unit.data import pictures
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError

datasets = pytest.importorskip("datasets")


def build(path, **fields):
    return SOURCES.decode({"name": "hf", "path": str(path), **fields}).build()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf")
    rows = datasets.Dataset.from_dict(
        {
            "image": [
                {"bytes": pictures.encoded(pictures.plain(name)), "path": None} for name in ("red", "blue")
            ]
            + [{"bytes": pictures.encoded(pictures.noise())[:200], "path": None}, None],
            "caption": [["a", "b"], ["c"], ["d"], [" "]],
            "kind": [1, 0, 1, 1],
        },
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "caption": datasets.List(datasets.Value("string")),
                "kind": datasets.ClassLabel(names=["cat", "dog"]),
            }
        ),
    )
    rows.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(folder / "two")
    return folder


def test_a_saved_data_set(saved):
    source = build(saved / "one", label="kind")
    assert len(source) == 3 and source.skipped == {"empty_caption": ["train:3"]}
    assert source.captions(0) == ("a", "b") and source.fields(0) == {"id": "train:0", "label": "dog"}
    assert source[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    with pytest.raises(BadRow) as caught:
        source[2]
    assert caught.value.reason == "truncated"


def test_a_saved_data_set_with_splits(saved):
    assert len(build(saved / "two", split="test")) == 1
    with pytest.raises(DataError, match="no split 'tets'. Did you mean 'test'"):
        build(saved / "two", split="tets")


def test_a_missing_column_and_a_missing_set_are_told(saved, tmp_path):
    with pytest.raises(DataError, match="no column 'captions'. Did you mean 'caption'"):
        build(saved / "one", caption="captions")
    with pytest.raises(DataError, match="cannot be loaded by datasets"):
        build(tmp_path / "nothing")


def test_a_folder_of_files(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("red", "blue"):
        (folder / f"{name}.png").write_bytes(pictures.encoded(pictures.plain(name)))
    (folder / "metadata.csv").write_text("file_name,text\nred.png,one\nblue.png,two\n")
    source = build(folder, caption="text")
    found = {source.captions(index)[0]: source[index]["image"].getpixel((0, 0)) for index in range(2)}
    assert found == {"one": (255, 0, 0), "two": (0, 0, 255)}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(build("~/files", caption="text")) == 2


def test_pictures_as_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(pictures.encoded(pictures.plain("red")))
    rows = datasets.Dataset.from_dict({"image": [str(tmp_path / "a.png"), ""], "caption": ["a", "b"]})
    rows.save_to_disk(tmp_path / "saved")
    source = build(tmp_path / "saved")
    assert source[0]["image"].size == Image.open(io.BytesIO((tmp_path / "a.png").read_bytes())).size
    with pytest.raises(BadRow):
        source[1]
