"""Local tar shards in the WebDataset form, img2dataset's and CLIP_benchmark's included."""

import tarfile
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from vlalign.data.images import decode
from vlalign.data.index import Decoded, Indexed
from vlalign.data.shard import Layout, Shard, Span
from vlalign.data.shards import Shards, expand
from vlalign.registry import SOURCES, suggestion
from vlalign.types import BadRow, DataError, Licence, Limits

LOOKED_AT = 1000  # members of a shard, to tell what it holds


@SOURCES.register("webdataset")
@dataclass(frozen=True, kw_only=True)
class WebDataset:
    """`shards`: paths with `{00000..01242}`, `{a,b}` or `*`, or folders of .tar files; uncompressed.

    `image`: extensions, the first that a sample has; `caption`: an extension, or `json.KEY` for a key of
    the .json member; `lines`: every line of it is a caption. Where samples have a .cls member it becomes the
    field `label`, named by a `classnames.txt` beside the shards or a folder above, and the caption of those
    that have none.
    """

    shards: str | tuple[str, ...]
    image: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    caption: str = "txt"
    lines: bool = False
    licence: str = "not stated"

    def __post_init__(self) -> None:
        """A .json member has no caption without a key."""
        if self.shards in ("", ()):
            raise ValueError("shards must name at least one path, got none")
        if self.caption == "json":
            raise ValueError("caption: json needs the key that holds the caption, as in json.caption")

    def build(self, limits: Limits = Limits()) -> Indexed:
        """Index shards that changed since they were last read. Raises DataError."""
        patterns = (self.shards,) if isinstance(self.shards, str) else self.shards
        paths = expand(patterns)
        shards = Shards(paths, Layout(self.image, self.caption, self.lines), _classes(paths[0]))
        if not len(shards):
            self._explain(paths[0])
        licence = Licence(name=", ".join(patterns), licence=self.licence, source=", ".join(patterns))
        return Indexed(shards, partial(_picture, limits), [licence], shards.skipped, what=licence.name)

    def _explain(self, shard: Path) -> None:
        """Raises DataError when the reason for having no sample is that none has such members."""
        names: set[str] = set()
        with suppress(tarfile.TarError), tarfile.open(shard, mode="r:") as tar:
            names.update(member.name.rpartition("/")[2] for member in islice(tar, LOOKED_AT))
        found = sorted({name.partition(".")[2].lower() for name in names} - {""})
        for field, wanted in (("image", self.image), ("caption", (self.caption.partition(".")[0],))):
            if found and not set(wanted) & set(found):
                raise DataError(
                    f"{field}: {shard} has no member that ends in .{' or .'.join(wanted)}."
                    f"{suggestion(wanted[0], found)} Its extensions: {', '.join(found)}"
                )


def _classes(shard: Path) -> list[str]:
    """The names of classes by number; none where two classes share one, as numbers then tell them apart.

    Raises DataError for a file that cannot be read.
    """
    for folder in (shard.parent, shard.parent.parent):
        path = folder / "classnames.txt"
        if path.is_file():
            try:
                names = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
            return names if len(set(names)) == len(names) else []
    return []


def _picture(limits: Limits, place: tuple[Shard, Span]) -> Decoded:
    shard, span = place
    if span[1] > limits.bytes:
        raise BadRow("too_many_bytes", f"{span[1]} bytes, the limit is {limits.bytes}")
    return decode(shard.read(span), limits)
