"""Texts, pictures, numbers and ids as JSON files tell them, checked before anything is made of them."""

import re
from collections.abc import Hashable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from vlalign.types import BadRow, Item

NUMBERED = re.compile(r"<\|image_(\d+)\|>")  # marks in a text where a picture stands
UNNUMBERED = re.compile(r"<image>")


def item(text: Any, images: Any, folder: Path, marks: re.Pattern[str] | None = None) -> Item:
    """A text, pictures by a path or a list of them, or both; null and "" are none. `marks` are taken out.

    Raises BadRow: `not_text`, `not_a_path`, `not_utf8`, `missing_image` where there are more marks than
    pictures, `no_text` where nothing is left.
    """
    text = plain(text)
    paths = [each for each in _several(images) if each not in (None, "")]
    if wrong := [each for each in paths if not isinstance(each, str)]:
        raise BadRow("not_a_path", f"expected the path of a picture, got {kind(wrong[0])}")
    for each in paths:
        utf8(each)
    if marks is not None:
        found = marks.findall(text)
        wanted = len(set(found)) if marks.groups else len(found)
        if wanted > len(paths):
            raise BadRow(
                "missing_image", f"a text has marks of {wanted} pictures, and {len(paths)} are given"
            )
        text = marks.sub("", text).strip()
    if not text.strip() and not paths:
        raise BadRow("no_text", "it has neither a text nor the path of a picture")
    return Item(text=text, images=tuple(folder / path for path in paths))


def described(told: Mapping[str, Any], folder: Path) -> Item:
    """Of an object with `text`, `image` or `images`, or both. Raises what `item` does."""
    return item(told.get("text"), told.get("images") or told.get("image"), folder)


def plain(text: Any) -> str:
    """A text; null is an empty one. Raises BadRow: `not_text`, `not_utf8`."""
    if text is not None and not isinstance(text, str):
        raise BadRow("not_text", f"expected a text, got {kind(text)}")
    return utf8(text or "")


def items(texts: Any, images: Any, folder: Path, marks: re.Pattern[str] | None = None) -> list[Item]:
    """Of texts and pictures side by side, each one or a list; where both are empty there is none.

    Raises BadRow, `uneven_lists` where both are lists and one is longer, and what `item` does.
    """
    several = [_several(texts), _several(images)]
    count = max(map(len, several))
    if uneven := [each for each in several if len(each) not in (0, count)]:
        raise BadRow("uneven_lists", f"{count} texts or pictures beside {len(uneven[0])} of the other")
    pairs = zip(*(each or [None] * count for each in several), strict=True)
    return [item(text, image, folder, marks) for text, image in pairs if _said(text) or _said(image)]


def number(value: Any) -> float:
    """A finite one. Raises BadRow: `bad_number`; text is none, whatever it says."""
    try:
        if isinstance(value, int | float) and isfinite(value):
            return float(value)
    except OverflowError:  # of an int beyond any float
        pass
    raise BadRow("bad_number", f"expected a finite number, got {kind(value)}")


def name(value: Any, otherwise: str) -> str:
    """An id from a text or a number; null and "" are none. Raises BadRow: `bad_id`, `not_utf8`."""
    if value is None or value == "":
        return otherwise
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        raise BadRow("bad_id", f"expected a text or a number as id, got {kind(value)}")
    return utf8(str(value))


def several(value: Any, what: str) -> list[Any]:
    """A list; null is an empty one. Raises BadRow: `not_a_list`."""
    if value is not None and not isinstance(value, list):
        raise BadRow("not_a_list", f"{what}: expected a list, got {kind(value)}")
    return value or []


def utf8(text: str) -> str:
    """The text. Raises BadRow: `not_utf8` where half of a surrogate pair stands alone."""
    try:
        text.isascii() or text.encode()
    except UnicodeEncodeError as error:
        raise BadRow("not_utf8", str(error)) from error
    return text


def normal(text: str) -> str:
    """Without capitals, white space made even: two texts with this alike are the same text."""
    return " ".join(text.casefold().split())


def first_places(documents: Sequence[Hashable]) -> list[int]:
    """Places of documents that do not stand before: their `Item`s, or their ids."""
    found: dict[Hashable, int] = {}
    for place, each in enumerate(documents):
        found.setdefault((normal(each.text), each.images) if isinstance(each, Item) else each, place)
    return list(found.values())


def kind(value: Any) -> str:
    """What a value of JSON is, in a few words."""
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    words = {type(None): "null", dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    return words.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _said(value: Any) -> bool:
    return bool(value.strip()) if isinstance(value, str) else value not in (None, [])


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value in (None, "") else [value]
