"""Emoji drawn by Google (Noto) and Twitter (Twemoji), with human labels and tags in 28 languages."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vlalign.data.catalogue import CATALOGUE, fetch
from vlalign.data.emoji_art import Style, cut, drawn, licences, load, sheet
from vlalign.data.index import Decoded, Entry, Index, Indexed
from vlalign.data.overlap import word_overlap
from vlalign.data.splits import Split, held_out, keeps
from vlalign.registry import SOURCES
from vlalign.types import Limits

Form = Literal["label_and_tags", "label", "tags", "other_tags", "each_tag"]
# fmt: off
Language = Literal[
    "bn", "da", "de", "en", "en-gb", "es", "es-mx", "et", "fi", "fr", "hi", "hu", "it", "ja",
    "ko", "lt", "ms", "nb", "nl", "pl", "pt", "ru", "sv", "th", "uk", "vi", "zh", "zh-hant",
]
# fmt: on


@SOURCES.register("emoji")
@dataclass(frozen=True, kw_only=True)
class Emoji:
    """`split`: by concept, the first code point, so no variant is on both sides; even over subcategories.

    `unseen`: the share of concepts held out, chosen by `seed`, alike for every style, language and `flags`.
    `captions`: forms that a picture is captioned by; an epoch draws one, evaluation uses all of them.
    `other_tags` are those that share no word with the label; of `each_tag` every one is a caption.
    """

    style: Style
    split: Split = "all"
    language: Language = "en"
    captions: tuple[Form, ...] = ("label_and_tags",)
    flags: Literal["exclude", "include", "only"] = "exclude"
    unseen: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.unseen < 1:
            raise ValueError(f"unseen must be between 0 and 1, got {self.unseen}")
        if not self.captions:
            raise ValueError("captions is empty; name at least one form, such as label_and_tags")

    def build(self, limits: Limits = Limits()) -> Indexed:
        """Fetch both packages when they are not in the cache, and index the sheet. Raises DataError."""
        rows, words = drawn(), fetch("emojibase-data") / "package" / self.language / "data.json"
        named = {_bare(item["hexcode"]): item for item in load(words)}
        unseen = held_out({_concept(row): row["subcategory"] for row in rows}, self.unseen, self.seed)
        index = Index()
        for row in rows:
            if self._wanted(row) and keeps(self.split, _concept(row), unseen):
                index.add(self._entry(row, named.get(_bare(row["unified"]), {})))
        art, data = licences(self.style)
        return Indexed(
            index.entries,
            partial(_picture, sheet(self.style)),
            [art, *CATALOGUE["emojibase-data"].licences, data],
            index.skipped,
            what=f"emoji ({self.style})",
        )

    def _wanted(self, row: dict[str, Any]) -> bool:
        return self.flags == "include" or (row["category"] == "Flags") == (self.flags == "only")

    def _entry(self, row: dict[str, Any], words: dict[str, Any]) -> Entry:
        label, tags = words.get("label", ""), words.get("tags", [])
        forms: dict[Form, list[str]] = {
            "label": [label],
            "tags": [", ".join(tags)],
            "other_tags": [", ".join(tag for tag in tags if not word_overlap(tag, label))],
            "label_and_tags": [", ".join(filter(None, [label, *tags]))],
            "each_tag": tags,
        }
        fields = {"concept": _concept(row), "label": label}
        fields |= {name: row[name] for name in ("subcategory", "category", "added_in")}
        fields["order"] = str(row["sort_order"])  # of emoji keyboards, like beside like
        captions = tuple(dict.fromkeys(text for form in self.captions for text in forms[form]))
        return Entry(
            f"{self.style}/{row['unified'].lower()}", captions, (row["sheet_x"], row["sheet_y"]), fields
        )


def _concept(row: dict[str, Any]) -> str:
    return str(row["unified"]).partition("-")[0].lower()


def _bare(code: str) -> str:
    """Code points without the variation selector, which the two packages write differently."""
    return "-".join(part for part in code.split("-") if part != "FE0F")


def _picture(path: Path, cell: tuple[int, int]) -> Decoded:
    return cut(path, cell), ()
