"""The pictures of a folder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vlalign.data.images import decode
from vlalign.data.index import Entry, Index, Indexed
from vlalign.registry import SOURCES
from vlalign.types import DataError, Licence, Limits

SUFFIXES = {
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".jp2",
    ".ppm",
    ".avif",
    ".qoi",
}


@SOURCES.register("folder")
@dataclass(frozen=True, kw_only=True)
class Folder:
    """Every picture file in `path` and in the folders inside it, by name; hidden ones are left out.

    A picture's caption is its file's name without the ending, its `label` that of the folder it is in.
    """

    path: str
    licence: str = "not stated"

    def build(self, limits: Limits = Limits()) -> Indexed:
        """List the files; nothing is decoded. Raises DataError."""
        root, index = Path(self.path).expanduser(), Index()
        if not root.is_dir():
            raise DataError(f"{root} is no folder; a path is relative to where the command is run")
        for path in sorted(root.rglob("*")):
            own = path.relative_to(root)
            if path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in own.parts):
                label = own.parent.name or root.resolve().name
                index.add(Entry(own.as_posix(), (path.stem,), path, {"label": label}))
        licences = [Licence(name=root.name, licence=self.licence, source=str(root))]
        return Indexed(index.entries, partial(decode, limits=limits), licences, index.skipped, what=str(root))
