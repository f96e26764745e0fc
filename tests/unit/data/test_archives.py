import io
import shutil
import subprocess
import tarfile

import pytest

from vlalign.data.archives import unpack
from vlalign.types import DataError


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "" if kind == tarfile.REGTYPE else content.decode()
            tar.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return path


FILE, LINK, HARD, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:/evil"])
def test_a_path_out_of_the_folder_is_refused_before_anything_is_written(tmp_path, name):
    path = archive(tmp_path / "a.tgz", ("good", FILE, b"1"), (name, FILE, b"2"))
    with pytest.raises(DataError, match="leads out of the folder"):
        unpack(path, tmp_path / "out")
    assert files(tmp_path) == ["a.tgz"]


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "victim").mkdir()
    path = archive(
        tmp_path / "a.tgz",
        ("to", LINK, str(tmp_path / "victim").encode()),
        ("hard", HARD, b"/etc/passwd"),
        ("null", DEVICE, b""),
        ("to/file", FILE, b"1"),
    )
    unpack(path, tmp_path / "out")
    assert files(tmp_path) == ["a.tgz", "out/to/file"]
    assert not (tmp_path / "out" / "to").is_symlink()


def test_only_what_is_wanted_is_unpacked(tmp_path):
    path = archive(
        tmp_path / "a.tgz", ("p/img/a/1.png", FILE, b"1"), ("p/img/b/1.png", FILE, b"2"), ("p/x", FILE, b"")
    )
    unpack(path, tmp_path / "out", ["p/img/a/*", "p/x"])
    assert files(tmp_path / "out") == ["p/img/a/1.png", "p/x"]


def test_a_file_without_a_name_is_refused(tmp_path):
    path = archive(tmp_path / "a.tgz", (".", FILE, b"1"))
    with pytest.raises(DataError, match=r"its member '\.'"):
        unpack(path, tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_an_archive_cut_short_is_told(tmp_path, cut):
    path = archive(tmp_path / "a.tgz", ("a", FILE, bytes(range(256)) * 20))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a.tgz cannot be unpacked"):
        unpack(path, tmp_path / "out")


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="needs dpkg-deb")
def test_a_debian_package_is_unpacked_without_its_links(tmp_path):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    (tree / "usr").mkdir()
    (tree / "usr" / "file").write_text("1")
    (tree / "usr" / "link").symlink_to("/etc/passwd")
    subprocess.run(["dpkg-deb", "--build", tree, tmp_path / "x.deb"], check=True, capture_output=True)
    unpack(tmp_path / "x.deb", tmp_path / "out")
    assert files(tmp_path / "out") == ["usr/file"] and not (tmp_path / "out/usr/link").is_symlink()
    (tmp_path / "x.deb").write_bytes(b"no")
    with pytest.raises(DataError, match="dpkg-deb --fsys-tarfile"):
        unpack(tmp_path / "x.deb", tmp_path / "out2")
