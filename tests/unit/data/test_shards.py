import io
import json
import os
import tarfile

import numpy as np
import pytest

from tests.unit.data import pictures
from vlalign.data import shard as one_shard
from vlalign.data import shards
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Limits


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tar(path, *members, form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as file:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def colour(number):
    return (number * 9 % 256, 100, 200)


def sample(number, form="png", **members):
    picture = pictures.encoded(pictures.plain(colour(number)))
    return [
        (f"s{number:04d}.{form}", picture),
        *((f"s{number:04d}.{key}", value) for key, value in members.items()),
    ]


def build(pattern, limits=Limits(), **fields):
    return SOURCES.decode({"name": "webdataset", "shards": pattern, **fields}).build(limits)


def test_any_row_of_any_shard_is_read_by_its_offset(tmp_path, cache):
    for shard in range(3):
        tar(
            tmp_path / f"{shard:05d}.tar",
            *(m for n in range(4) for m in sample(4 * shard + n, txt=f"caption {n}".encode())),
        )
    for _ in range(2):
        source = build(str(tmp_path / "{00000..00002}.tar"))
        assert len(source) == 12
        for index in (11, 0, 6):
            assert source[index]["image"].getpixel((0, 0)) == colour(index)
            assert source.captions(index) == (f"caption {index % 4}",)
        assert source.fields(7)["id"] == "00001/s0007"
    assert len(list((cache / "shards").iterdir())) == 3


def test_the_index_is_made_once_for_each_state_of_a_shard(tmp_path, monkeypatch):
    walks = []
    walk = one_shard._walk
    monkeypatch.setattr(one_shard, "_walk", lambda *asked: walks.append(asked) or walk(*asked))
    path = tar(tmp_path / "a.tar", *sample(0, txt=b"x"))
    build(str(path)), build(str(path))
    assert len(walks) == 1
    tar(path, *sample(0, txt=b"x"), *sample(1, txt=b"y"))
    assert len(build(str(path))) == 2 and len(walks) == 2
    build(str(path), lines=True)
    assert len(walks) == 3


def test_patterns(tmp_path):
    for name in ("a/0.tar", "a/1.tar", "b/2.tar"):
        tar(tmp_path / name, *sample(0, txt=b"x"))
    names = [path.name for path in shards.expand([str(tmp_path / "{a,b}" / "*.tar")])]
    assert names == ["0.tar", "1.tar", "2.tar"]
    assert [path.name for path in shards.expand([str(tmp_path / "a")])] == ["0.tar", "1.tar"]
    with pytest.raises(DataError, match=r"no shard is at .*/a/9.tar \(from"):
        shards.expand([str(tmp_path / "a" / "{0,9}.tar")])
    assert list(shards._braces("x{08..11}y{a,b}")) == [
        f"x{n}y{c}" for n in ("08", "09", "10", "11") for c in "ab"
    ]


def test_shards_of_one_name_keep_their_rows_apart(tmp_path):
    for folder in "ab":
        tar(tmp_path / folder / "0.tar", *sample(0, txt=b"x"))
    source = build(str(tmp_path / "{a,b}" / "0.tar"))
    assert len({source.fields(index)["id"] for index in range(2)}) == 2


def test_captions_by_line_and_from_json(tmp_path):
    path = tar(
        tmp_path / "a.tar", *sample(0, txt=b"one\n\ntwo \n", json=json.dumps({"alt": ["x", "y"]}).encode())
    )
    assert build(str(path)).captions(0) == ("one\n\ntwo",)
    assert build(str(path), lines=True).captions(0) == ("one", "two")
    assert build(str(path), caption="json.alt").captions(0) == ("x", "y")
    with pytest.raises(ValueError, match="as in json.caption"):
        build(str(path), caption="json")


def test_a_folder_of_clip_benchmark(tmp_path):
    tar(
        tmp_path / "set/test/0.tar",
        *(m for n in range(4) for m in sample(n, "webp", cls=str(n % 2).encode())),
    )
    (tmp_path / "set" / "classnames.txt").write_text("cat\nhot dog\n")
    source = build(str(tmp_path / "set" / "test"))
    assert [source.fields(index)["label"] for index in range(4)] == ["cat", "hot dog"] * 2
    assert source.captions(1) == ("hot dog",) and source[3]["label"] == "hot dog"
    (tmp_path / "set" / "classnames.txt").write_text("cat\ncat\n")
    assert build(str(tmp_path / "set" / "test")).fields(1)["label"] == "1"


def test_every_damaged_sample_is_counted(tmp_path):
    good, picture = sample(1, txt=b"good"), pictures.encoded(pictures.plain("red"))
    path = tar(
        tmp_path / "a.tar",
        *good,
        *sample(2, txt=b" \n"),
        *sample(3, txt=b"caf\xe9"),
        *sample(4),
        ("s0005.txt", b"no picture"),
        *good,
        *sample(7, txt=b"x" * (2**20 + 1)),
        ("folder/s0001.jpg", picture),
        ("folder/s0001.txt", b"in a folder"),
        (".hidden", b""),
    )
    source = build(str(path))
    assert [source.fields(index)["id"] for index in range(len(source))] == ["a/s0001", "a/folder/s0001"]
    assert source.skipped == {
        "empty_caption": ["a/s0002"],
        "not_utf8": ["a/s0003"],
        "missing_column": ["a/s0004", "a/s0005"],
        "duplicate_id": ["a/s0001"],
        "too_many_bytes": ["a/s0007"],
    }
    bad = tar(
        tmp_path / "b.tar",
        *sample(0, json=b"{"),
        *sample(1, json=b'{"a": 1}'),
        *sample(2, json=b'{"c": "x"}'),
    )
    source = build(str(bad), caption="json.c")
    assert source.skipped == {"not_json": ["b/s0000"], "missing_column": ["b/s0001"]} and len(source) == 1


def test_a_shard_cut_short_loses_only_its_end(tmp_path):
    path = tar(tmp_path / "a.tar", *(m for n in range(5) for m in sample(n, txt=b"x")))
    whole = build(str(path))
    offset = whole.entries[3].place[1][0]
    path.write_bytes(path.read_bytes()[: offset + 20])
    source = build(str(path))
    assert len(source) == 3 and source.skipped["truncated"] == ["a/s0003"]
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"no tar" * 1000)
    tar(tmp_path / "d.tar", *sample(0, txt=b"x"))
    source = build(str(tmp_path / "{b,c,d}.tar"))
    assert len(source) == 1 and source.skipped == {"damaged_shard": ["b", "c"]}
    with pytest.raises(DataError, match="has no usable row; skipped: 1 damaged_shard"):
        build(str(tmp_path / "c.tar"))


def test_a_shard_that_is_not_the_one_that_was_indexed_gives_no_row(tmp_path):
    path = tar(tmp_path / "a.tar", *(m for n in range(4) for m in sample(n, txt=b"x")))
    source = build(str(path))
    content, state = path.read_bytes(), path.stat()

    def reason(call):
        with pytest.raises(BadRow) as caught:
            call(1)
        return caught.value.reason

    path.write_bytes(content[:-512])
    assert reason(source.__getitem__) == reason(source.captions) == "changed_shard"
    tar(path, *(m for n in (3, 2, 1, 0) for m in sample(n, txt=b"y")))  # as large, with other pictures
    assert path.stat().st_size == state.st_size
    assert reason(source.__getitem__) == reason(source.captions) == "changed_shard"
    path.unlink()
    assert reason(source.__getitem__) == reason(source.captions) == "missing_shard"
    path.mkdir()
    assert reason(source.__getitem__) == "unreadable_shard"
    path.rmdir()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert source[1]["image"].getpixel((0, 0)) == colour(1)


def test_a_shard_that_cannot_be_read_is_told_by_name(tmp_path):
    (tmp_path / "a.tar").symlink_to(tmp_path / "nowhere.tar")
    with pytest.raises(DataError, match=r"the shard .*a.tar cannot be read: No such file"):
        build(str(tmp_path / "*.tar"))


def test_a_writer_while_a_member_is_read_is_noticed(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", *sample(0, txt=b"x"))
    source = build(str(path))

    class Overtaken(io.FileIO):
        def read(self, size):
            with open(path, "ab") as file:
                file.write(b"more")
            return super().read(size)

    monkeypatch.setattr(one_shard.Path, "open", lambda path, mode: Overtaken(path, mode))
    with pytest.raises(BadRow, match="is not the file that was indexed"):
        source.captions(0)


@pytest.mark.parametrize("reason", ["missing_shard", "unreadable_shard", "changed_shard"])
def test_a_caption_that_cannot_be_read_now_is_not_kept_as_skipped(tmp_path, cache, monkeypatch, reason):
    path = tar(tmp_path / "a.tar", *(m for n in range(3) for m in sample(n, txt=b"x")))
    read, calls = one_shard.Shard.read, []

    def hiccup(shard, span):
        calls.append(span)
        if len(calls) == 2:
            raise BadRow(reason, f"{shard.path}: the network is down")
        return read(shard, span)

    monkeypatch.setattr(one_shard.Shard, "read", hiccup)
    with pytest.raises(DataError, match="could not be indexed: .*the network is down; run it again"):
        build(str(path))
    assert not list(cache.rglob("*.npz"))
    source = build(str(path))
    assert len(source) == 3 and source.skipped == {}


def test_a_walk_that_the_disk_breaks_off_is_not_kept(tmp_path, cache, monkeypatch):
    path = tar(tmp_path / "a.tar", *(m for n in range(3) for m in sample(n, txt=b"x")))
    step, calls = tarfile.TarFile.next, []

    def hiccup(file):
        calls.append(file)
        if len(calls) == 4:
            raise OSError(5, "Input/output error")
        return step(file)

    monkeypatch.setattr(tarfile.TarFile, "next", hiccup)
    with pytest.raises(DataError, match=r"a.tar could not be indexed: .*Input/output error; run it again"):
        build(str(path))
    assert not list(cache.rglob("*.npz"))
    assert len(build(str(path))) == 3


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "flipped", "another"])
def test_a_damaged_index_is_made_again(tmp_path, cache, damage):
    path = tar(tmp_path / "a.tar", *(m for n in range(3) for m in sample(n, txt=b"x")))
    build(str(path))
    (kept,) = cache.rglob("*.npz")
    whole = kept.read_bytes()
    if damage == "another":
        np.savez(kept, other=np.zeros(3))
    else:
        half = len(whole) // 2
        flipped = whole[:60] + bytes(byte ^ 255 for byte in whole[60:90]) + whole[90:]
        kept.write_bytes({"empty": b"", "text": b"no", "cut": whole[:half], "flipped": flipped}[damage])
    assert len(build(str(path))) == 3
    assert np.load(kept)["keys"].tolist() == ["s0000", "s0001", "s0002"]


def test_class_names_that_cannot_be_read_are_told(tmp_path):
    path = tar(tmp_path / "a.tar", *sample(0, cls=b"0"))
    (tmp_path / "classnames.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"classnames.txt cannot be read as UTF-8 text: .*0xe9"):
        build(str(path))


def test_limits_are_checked_before_reading(tmp_path):
    path = tar(tmp_path / "a.tar", *sample(0, txt=b"x"))
    with pytest.raises(BadRow) as caught:
        build(str(path), Limits(bytes=10))[0]
    assert caught.value.reason == "too_many_bytes"


def test_old_and_new_tars_agree_with_the_webdataset_package(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        members = [m for n in range(6) for m in sample(n, txt=f"caption {n}".encode())]
        path = tar(tmp_path / f"{form}.tar", *members, form=form)
        source = build(str(path))
        theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
        assert len(theirs) == len(source) == 6
        for index, row in enumerate(theirs):
            assert row["txt"].decode() == source.captions(index)[0]
            assert source.fields(index)["id"].endswith(row["__key__"])
            file, span = source.entries[index].place
            assert file.read(span) == row["png"]


def test_no_shard_is_refused():
    with pytest.raises(ValueError, match="shards must name at least one path"):
        build([])


def test_a_misspelt_extension_is_told_with_those_there_are(tmp_path):
    path = str(tar(tmp_path / "a.tar", *sample(0, text=b"red")))
    with pytest.raises(DataError, match=r"caption: .*a.tar .* in .txt. Did you mean 'text'. .*: png, text"):
        build(path)
    with pytest.raises(
        DataError, match=r"image: .* in .jpg or .gif. Did you mean .png.. Its extensions: png, text"
    ):
        build(path, caption="text", image=["jpg", "gif"])


def test_a_cache_that_cannot_be_made_is_told(tmp_path, cache):
    cache.write_text("a file")
    with pytest.raises(DataError, match="the cache .*shards cannot be written: .*; set VLALIGN_CACHE"):
        build(str(tar(tmp_path / "a.tar", *sample(0, txt=b"red"))))
