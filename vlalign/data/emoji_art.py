"""Emoji that every set of drawings has, and the drawings of Google and Twitter, cut out of their sheets."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from vlalign.data.catalogue import CATALOGUE, NOTO, TWEMOJI, fetch
from vlalign.types import Licence

Style = Literal["google", "twitter"]
SIZE, BORDER = 32, 1  # pixels of a cell in the sheet
# Only what every set draws is kept, so that styles match one to one.
EVERY_STYLE = ("google", "twitter", "apple", "facebook")
ART = {"google": NOTO, "twitter": TWEMOJI}


def drawn(variants: bool = False) -> list[dict[str, Any]]:
    """The package's rows, fetched when they are not in the cache. `variants`: with those of a skin tone.

    Raises DataError.
    """
    rows = load(_folder() / "emoji.json")
    if variants:
        rows += [{**row, **own} for row in rows for own in row.get("skin_variations", {}).values()]
    return [row for row in rows if all(row[f"has_img_{style}"] for style in EVERY_STYLE)]


def sheet(style: Style) -> Path:
    """The file of all drawings of a style."""
    return _folder() / "img" / style / "sheets" / f"{SIZE}.png"


def cut(path: Path, cell: tuple[int, int]) -> Image.Image:
    """An RGB picture from a cell of a sheet, `sheet_x` and `sheet_y` of a row, on white."""
    left, top = (place * (SIZE + 2 * BORDER) + BORDER for place in cell)
    found = _opened(path).crop((left, top, left + SIZE, top + SIZE))
    return Image.alpha_composite(Image.new("RGBA", found.size, "white"), found).convert("RGB")


def licences(style: Style) -> list[Licence]:
    """Of a style's drawings and of what is told about them."""
    return [ART[style], CATALOGUE["emoji-datasource"].licences[0]]


def load(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON file."""
    loaded: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def _folder() -> Path:
    return fetch("emoji-datasource") / "package"


@lru_cache(maxsize=2)
def _opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGBA")
