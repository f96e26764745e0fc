"""Open Clip Art Library: drawings with the titles, keywords and descriptions that their authors gave them."""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

from vlalign.data.catalogue import CLIPART, fetch
from vlalign.data.images import decode
from vlalign.data.index import Entry, Index, Indexed
from vlalign.data.splits import Split, held_out, keeps
from vlalign.registry import SOURCES
from vlalign.types import BadRow, Limits

DUBLIN_CORE = "{http://purl.org/dc/elements/1.1/}"
LOST = re.compile(r"(HASH)?\(?(0x[0-9a-f]+)?\)?", re.IGNORECASE)  # what a script wrote in place of a word
CREDIT = re.compile(r"^clip ?art by [^-]+ - ", re.IGNORECASE)
Form = Literal["title_and_keywords", "title", "description"]


@SOURCES.register("openclipart")
@dataclass(frozen=True, kw_only=True)
class OpenClipArt:
    """`split`: by title, even over the library's folders. `captions`: forms, one drawn an epoch.

    Noisy on purpose. Left out and counted: drawings without a title, and those whose title and keywords an
    earlier one has (`repeated_caption`: themes named as a whole). `limits` meets a few of 168 megapixels.
    """

    split: Split = "all"
    captions: tuple[Form, ...] = ("title_and_keywords",)
    unseen: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.unseen < 1:
            raise ValueError(f"unseen must be between 0 and 1, got {self.unseen}")
        if not self.captions:
            raise ValueError("captions is empty; name at least one form, such as title_and_keywords")

    def build(self, limits: Limits = Limits()) -> Indexed:
        """Fetch both packages when the cache lacks them, and read the metadata. Raises DataError."""
        pictures = fetch("openclipart-png") / "usr/share/openclipart/png"
        drawings = fetch("openclipart-svg") / "usr/share/openclipart/svg"
        found, index = Index(), Index()
        seen: set[str] = set()
        for drawing in sorted(drawings.rglob("*.svg")):
            path = drawing.relative_to(drawings).with_suffix(".png")
            name = path.with_suffix("").as_posix()
            with found.row(name):
                found.add(self._entry(drawing, name, pictures / path, seen))
        strata = {entry.fields["concept"]: entry.fields["category"] for entry in found.entries}
        unseen = held_out(strata, self.unseen, self.seed)
        for entry in found.entries:
            if keeps(self.split, entry.fields["concept"], unseen):
                index.add(entry)
        return Indexed(
            index.entries, partial(decode, limits=limits), [CLIPART], found.skipped, what="openclipart"
        )

    def _entry(self, drawing: Path, name: str, picture: Path, seen: set[str]) -> Entry:
        if not picture.is_file():
            raise BadRow("missing_file", f"no {picture}")
        title, keywords, description = _metadata(drawing)
        both = ", ".join([title, *keywords])
        if not title:
            raise BadRow("empty_caption", "no title")
        if both.casefold() in seen:
            raise BadRow("repeated_caption", both)
        seen.add(both.casefold())
        forms = {"title_and_keywords": both, "title": title, "description": description}
        captions = tuple(dict.fromkeys(forms[form] for form in self.captions))
        fields = {"concept": title.casefold(), "category": name.partition("/")[0], "label": title}
        return Entry(name, captions, picture, fields)


def _metadata(drawing: Path) -> tuple[str, list[str], str]:
    """Title, keywords and description; reads no further than the first block of metadata."""
    try:
        with drawing.open("rb") as file:
            for _, element in ElementTree.iterparse(file):
                if element.tag.endswith("}Work"):
                    words = [_clean(item.text) for item in element.iter() if item.tag.endswith("}li")]
                    title = CREDIT.sub("", _clean(element.findtext(f"{DUBLIN_CORE}title")))
                    keywords = list(dict.fromkeys(word for word in words if word))
                    return title, keywords, _clean(element.findtext(f"{DUBLIN_CORE}description"))
    except ElementTree.ParseError as error:
        raise BadRow("not_xml", str(error)) from error
    return "", [], ""


def _clean(text: str | None) -> str:
    words = " ".join((text or "").replace("_", " ").split())
    return "" if LOST.fullmatch(words) else words
