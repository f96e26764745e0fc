import csv as csv_module
import json

import pyarrow
import pyarrow.parquet
import pytest

from tests.unit.data import pictures
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Limits


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "img").mkdir()
    for name in ("red", "blue", "green"):
        (tmp_path / "img" / f"{name}.png").write_bytes(pictures.encoded(pictures.plain(name)))
    return tmp_path


def build(form, path, **fields):
    return SOURCES.decode({"name": form, "path": str(path), **fields}).build()


def lines(path, *rows):
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def row(image="img/red.png", caption="a", **more):
    return {"image": image, "caption": caption, **more}


def test_jsonl_rows_become_samples(folder):
    path = lines(
        folder / "a.jsonl",
        row(name=7, kind="x", age=37.5),
        row("img/blue.png", ["b", " c "], name="8", kind="y", age=40),
    )
    source = build("jsonl", path, id="name", concept="kind", label="age")
    assert len(source) == 2
    sample = source[1]
    assert sample["image"].getpixel((0, 0)) == (0, 0, 255)
    assert sample["captions"] == source.captions(1) == ("b", "c")
    assert source.fields(0) == {"id": "7", "concept": "x", "label": "37.5"} and sample["id"] == "8"
    assert source.skipped == {} and source.licences[0].licence == "not stated"


def test_several_caption_columns(folder):
    path = lines(
        folder / "a.jsonl", {"image": "img/red.png", "alt": "", "title": "t", "more": ["m", None, "n"]}
    )
    assert build("jsonl", path, caption=["alt", "title", "more"]).captions(0) == ("t", "m", "n")


def test_every_damaged_line_is_counted_and_no_good_one_is_lost(folder):
    path = lines(
        folder / "a.jsonl",
        row(name="1"),
        b"",
        row(caption="  ", name="3"),
        row(caption=[], name="4"),
        row(caption=None, name="5"),
        {"image": "img/red.png", "name": "6"},
        b'{"image": "img/red.png", "caption": "caf\xe9", "name": "7"}',
        row(caption="\ud800", name="8"),
        b'{"image": "img/red.png", "caption": "a"',
        b"[1, 2]",
        b"[" * 100_000,
        row(name="1"),
        row(caption={"a": 1}, name="13"),
        row(caption="x"),
        row(name="15"),
        row(name=" "),
    )
    source = build("jsonl", path, id="name")
    assert [source.fields(index)["id"] for index in range(len(source))] == ["1", "15"]
    assert source.skipped == {
        "empty_caption": ["3", "4", "5"],
        "missing_column": ["a.jsonl:6", "a.jsonl:14", "a.jsonl:16"],
        "not_utf8": ["a.jsonl:7", "a.jsonl:8"],
        "not_json": ["a.jsonl:9", "a.jsonl:10", "a.jsonl:11"],
        "duplicate_id": ["1"],
        "not_text": ["a.jsonl:13"],
    }


def test_a_bad_row_that_comes_first_does_not_take_the_id(folder):
    source = build("jsonl", lines(folder / "a.jsonl", row(caption="", name="1"), row(name="1")), id="name")
    assert len(source) == 1 and source.skipped == {"empty_caption": ["1"]}


def test_pictures_that_cannot_be_read(folder):
    (folder / "img" / "cut.png").write_bytes(pictures.encoded(pictures.noise())[:200])
    source = build(
        "jsonl", lines(folder / "a.jsonl", *map(row, ("img/none.png", "img/cut.png", None, "img")))
    )
    for index, reason in enumerate(("missing_file", "truncated", "missing_file", "unreadable_file")):
        with pytest.raises(BadRow) as caught:
            source[index]
        assert caught.value.reason == reason


def test_conversions_are_told(folder):
    (folder / "img" / "c.jpg").write_bytes(pictures.cmyk())
    source = build("jsonl", lines(folder / "a.jsonl", row("img/c.jpg"), row()))
    assert source[0]["conversions"] == ("cmyk",) and source[1]["conversions"] == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([row()], "has no column 'captoin'. Did you mean 'caption'. Columns: caption, image"),
        ([], "has no usable row; skipped: none"),
        ([b"no"], "has no usable row; skipped: 1 not_json"),
    ],
)
def test_unusable_files_are_told(folder, content, message):
    with pytest.raises(DataError, match=message.replace("?", r"\?").replace("'. C", r"'\? C")):
        build("jsonl", lines(folder / "a.jsonl", *content), caption="captoin")


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_missing_file_is_told(folder, form):
    with pytest.raises(DataError, match="none.x is no file"):
        build(form, folder / "none.x")


def test_csv_rows(folder):
    path = folder / "a.csv"
    body = b'\xef\xbb\xbfimage,caption,n\nimg/red.png,"a, ""b""\nc",1\nimg/red.png,caf\xe9,2\nimg/red.png\n'
    path.write_bytes(body + b"img/blue.png,,4\nimg/blue.png,x,5,extra\nimg/blue.png,y,5\n")
    source = build("csv", path, id="n")
    assert [source.fields(index)["id"] for index in range(len(source))] == ["1", "5"]
    assert source.captions(0) == ('a, "b"\nc',) and source[1]["image"].getpixel((0, 0)) == (0, 0, 255)
    assert source.skipped == {
        "not_utf8": ["a.csv:2"],
        "missing_column": ["a.csv:3"],
        "empty_caption": ["4"],
        "duplicate_id": ["5"],
    }


def test_csv_oddities(folder):
    path = folder / "a.tsv"
    path.write_text(f"image\tcaption\nimg/red.png\t{'x' * 200_000}\nimg/red.png\ta,b\n")
    source = build("csv", path, delimiter="\t")
    assert source.captions(0) == ("a,b",) and source.skipped == {"not_csv": ["a.tsv:1"]}
    path.write_text("")
    with pytest.raises(DataError, match="first line must name the columns"):
        build("csv", path)
    with pytest.raises(ValueError, match="delimiter must be one character"):
        build("csv", path, delimiter="||")


def test_csv_reads_what_pythons_writer_writes(folder):
    captions = ["plain", 'quo"te', "new\nline", "comma,", "ünïcode 🦙", " space "]
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv_module.writer(file)
        writer.writerows([("image", "caption"), *(("img/red.png", caption) for caption in captions)])
    source = build("csv", folder / "a.csv")
    assert [source.captions(index)[0] for index in range(len(source))] == [text.strip() for text in captions]


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=3)
    return path


def test_parquet_with_paths(folder):
    path = parquet(
        folder / "a.parquet",
        image=["img/red.png", "img/blue.png", None],
        caption=["a", "b", "c"],
        n=[1, 2, 3],
    )
    source = build("parquet", path, id="n")
    assert source[1]["image"].getpixel((0, 0)) == (0, 0, 255) and source.fields(1)["id"] == "2"
    with pytest.raises(BadRow, match="expected the path"):
        source[2]
    assert not (folder / "cache").exists()


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_with_bytes_reads_any_row(folder, struct):
    colours = [(number, 255 - number, 7) for number in range(11)]
    data = [pictures.encoded(pictures.plain(colour)) for colour in colours]
    cells = [{"bytes": item, "path": None} for item in data] if struct else data
    path = parquet(folder / "a.parquet", image=cells, caption=[["c", str(number)] for number in range(11)])
    for _ in range(2):
        source = build("parquet", path)
        assert source.captions(4) == ("c", "4")
        for index in (10, 0, 5):
            assert source[index]["image"].getpixel((0, 0)) == colours[index]
    assert len(list((folder / "cache" / "arrow").glob("*.arrow"))) == 1
    assert not list((folder / "cache" / "arrow").glob("*.part"))


def test_a_cache_that_cannot_be_made_is_told(folder):
    (folder / "cache").write_text("a file")
    picture = pictures.encoded(pictures.plain((1, 2, 3)))
    with pytest.raises(DataError, match="the cache .*arrow cannot be written: .*; set VLALIGN_CACHE"):
        build("parquet", parquet(folder / "a.parquet", image=[picture], caption=["a"]))


def test_parquet_with_damage(folder):
    texts = pyarrow.array([b"a", b"caf\xe9", None, b"d"]).cast(pyarrow.binary())
    strings = pyarrow.StringArray.from_buffers(4, *texts.buffers()[1:], texts.buffers()[0])
    source = build("parquet", parquet(folder / "a.parquet", image=["img/red.png"] * 4, caption=strings))
    assert len(source) == 2 and source.skipped == {
        "not_utf8": ["a.parquet:2"],
        "empty_caption": ["a.parquet:3"],
    }
    with pytest.raises(DataError, match="no column 'imgae'. Did you mean 'image'"):
        build("parquet", folder / "a.parquet", image="imgae")
    (folder / "b.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="b.parquet is no Parquet file"):
        build("parquet", folder / "b.parquet")


@pytest.mark.parametrize("column", ["image", "caption"])
@pytest.mark.parametrize("kind", [OSError, pyarrow.ArrowInvalid])
def test_damaged_pages_of_a_parquet_file_are_told_as_its_own(folder, column, kind, monkeypatch):
    class Damaged(pyarrow.parquet.ParquetFile):
        def iter_batches(self, *asked, columns, **more):
            yield from super().iter_batches(*asked, columns=columns, **more)
            if column in columns:
                raise kind("Corrupt snappy compressed data.")

    path = parquet(folder / "a.parquet", image=[pictures.encoded(pictures.plain("red"))], caption=["a"])
    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", Damaged)
    with pytest.raises(DataError, match="a.parquet cannot be read: Corrupt snappy"):
        build("parquet", path)
    assert not list((folder / "cache").rglob("*.arrow"))


def test_limits_reach_the_reader(folder):
    source = SOURCES.decode({"name": "jsonl", "path": str(lines(folder / "a.jsonl", row()))}).build(
        Limits(pixels=9)
    )
    with pytest.raises(BadRow, match="20 x 12 pixels, the limit is 9"):
        source[0]
