"""Encoded images of any origin -> RGB pictures, within limits that are checked before anything is decoded."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import cache
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from vlalign.types import BadRow, Item, Limits

# Its advice about odd files; the reasons below say what matters. (`catch_warnings` is not for threads.)
warnings.filterwarnings("ignore", module=r"PIL\.")
# Formats that run no other program (EPS does) and tell their size before they are decoded (ICO does not).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "JPEG2000", "PPM", "AVIF", "QOI")
# What Pillow's parsers raise on bytes that are not what they claim to be.
DAMAGE = (OSError, SyntaxError, ValueError, LookupError, ArithmeticError, TypeError, EOFError, RuntimeError,
          struct.error, zlib.error)  # fmt: skip
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"qoif")
SEVERAL_PICTURES = ("MPO",)  # a telephone's photograph with its preview: nothing is lost by taking the first
TURNS = {  # EXIF orientation -> what turns the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ORIENTATION = 0x0112
_HEADERS_ONLY = ContextVar("_HEADERS_ONLY", default=False)


@contextmanager
def headers_only() -> Iterator[None]:
    """Inside, `decode` reads no pixels: pictures have their size, not turned upright, and no conversions."""
    token = _HEADERS_ONLY.set(True)
    try:
        yield
    finally:
        _HEADERS_ONLY.reset(token)


def decode(encoded: bytes | Path, limits: Limits = Limits()) -> tuple[Image.Image, tuple[str, ...]]:
    """An upright RGB picture and what had to be converted to get it.

    Conversions: `animated` (first frame kept), `cmyk`, `sixteen_bit` (scaled to 8), `palette`, `transparent`
    (laid on white), `turned` (EXIF orientation applied), `other_colours` (YCbCr, LAB). Greyscale is none.

    Raises BadRow: `missing_file`, `unreadable_file`, `empty_file`, `too_many_bytes`, `too_many_pixels`
    (Pillow itself stops at 179 million), `not_an_image`, `truncated` (cut short or damaged), `odd_depth`.
    """
    data = encoded if isinstance(encoded, bytes) else read(encoded, limits)
    if not data:
        raise BadRow("empty_file")
    if len(data) > limits.bytes:
        raise BadRow("too_many_bytes", f"{len(data)} bytes, the limit is {limits.bytes}")
    return _picture(data, limits)


def opened(image: Any, limits: Limits = Limits()) -> Image.Image:
    """An upright RGB picture of a path or a PIL image. Raises BadRow, as `decode` does."""
    return settle(image)[0] if isinstance(image, Image.Image) else decode(Path(image), limits)[0]


def with_pictures(item: Item, limits: Limits) -> Item:
    """The same with its pictures opened. Raises BadRow."""
    images = tuple(opened(image, limits) for image in item.images)
    return replace(item, images=images) if images else item


def decode_cell(folder: Path, limits: Limits, cell: Any) -> tuple[Image.Image, tuple[str, ...]]:
    """`decode` what a column holds: a path seen from `folder`, bytes, or {"bytes", "path"} with either."""
    if isinstance(cell, Mapping):
        cell = cell["bytes"] if cell.get("bytes") is not None else cell.get("path")
    if isinstance(cell, str) and cell:
        return decode(folder / cell, limits)
    if not isinstance(cell, bytes):
        raise BadRow(
            "missing_file", f"expected the path or the bytes of a picture, got {type(cell).__name__}"
        )
    return decode(cell, limits)


def read(path: Path, limits: Limits) -> bytes:
    """The bytes of a file, its size checked first. Raises BadRow."""
    try:
        state = path.stat()
        if not S_ISREG(state.st_mode):
            raise OSError("not a regular file")  # a folder, or a device that never ends
        size = state.st_size
        data = path.read_bytes() if size <= limits.bytes else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BadRow("missing_file", f"{path} is not there") from error
    except (OSError, ValueError) as error:  # also: no permission, a NUL in the name
        raise BadRow("unreadable_file", f"{path}: {error}") from error
    if size > limits.bytes:
        raise BadRow("too_many_bytes", f"{path} has {size} bytes, the limit is {limits.bytes}")
    return data


@cache
def _formats() -> tuple[str, ...]:
    """The accepted formats that this build of Pillow can open."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _picture(data: bytes, limits: Limits) -> tuple[Image.Image, tuple[str, ...]]:
    image = _header(data, limits)
    if _HEADERS_ONLY.get():
        return image, ()
    try:
        animated = image.format not in SEVERAL_PICTURES and getattr(image, "is_animated", False)
        deep = image.mode.startswith("I") or any(";16" in str(tile.args) for tile in image.tile)
        if limits.draft is not None:
            image.draft(None, (limits.draft, limits.draft))  # of a JPEG; other formats have no drafts
        image.load()
    except Image.DecompressionBombError as error:
        raise BadRow("too_many_pixels", str(error)) from error
    except DAMAGE as error:
        raise BadRow("truncated", f"cut short or damaged: {error}") from error
    marks = [mark for mark, seen in (("animated", animated), ("sixteen_bit", deep)) if seen]
    picture, more = settle(image)
    return picture, tuple(dict.fromkeys([*marks, *more]))


def settle(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """An upright RGB picture of a decoded one of any mode, and what had to be converted."""
    marks = []
    for step in (_upright, _eight_bit, _on_white, _rgb):
        image, mark = step(image)
        marks += [mark] if mark else []
    return image, marks


def _header(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """The picture opened and not decoded, its pixels within the limit."""
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
    except Image.DecompressionBombError as error:
        raise BadRow("too_many_pixels", str(error)) from error
    except DAMAGE as error:
        if data.startswith(SIGNATURES) or data[8:12] in (b"WEBP", b"avif"):
            raise BadRow(
                "truncated", "begins like a picture, but its header is cut short or damaged"
            ) from error
        raise BadRow("not_an_image", f"no picture in any of {', '.join(_formats())}") from error
    if image.width * image.height > limits.pixels:
        size = f"{image.width} x {image.height} pixels"
        raise BadRow("too_many_pixels", f"{size}, the limit is {limits.pixels} in all")
    return image


def _upright(image: Image.Image) -> tuple[Image.Image, str | None]:
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except DAMAGE:  # broken EXIF says nothing about the picture
        turn = None
    if turn is None:
        return image, None
    turned = image.transpose(turn)
    # Without what told its orientation, by which it would be turned again whenever it is settled again.
    turned.info = {name: value for name, value in turned.info.items() if name == "transparency"}
    return turned, "turned"


def _eight_bit(image: Image.Image) -> tuple[Image.Image, str | None]:
    """16-bit greyscale divided by 257: `convert` would clip it to white."""
    if image.mode == "F":
        raise BadRow("odd_depth", "floating-point pixels have no known white")
    if not image.mode.startswith("I"):
        return image, None
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadRow("odd_depth", f"pixels from {values.min()} to {values.max()} fit no 16-bit scale")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)), "sixteen_bit"


def _on_white(image: Image.Image) -> tuple[Image.Image, str | None]:
    if not image.has_transparency_data:
        return image, None
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB"), "transparent"


def _rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    marks = {"RGB": None, "L": None, "1": None, "LA": None, "P": "palette", "CMYK": "cmyk"}
    mark = marks.get(image.mode, "other_colours")
    return (image if image.mode == "RGB" else image.convert("RGB")), mark
