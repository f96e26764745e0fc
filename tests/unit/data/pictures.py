"""Encoded pictures of every kind that a web crawl holds, made in memory."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(width=20, height=12, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def plain(colour, width=20, height=12):
    return Image.new("RGB", (width, height), colour)


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(orientation, form="JPEG", image=None):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image or noise(), form, exif=exif)


def grey16(values, form="PNG"):
    return encoded(Image.fromarray(np.array(values, dtype=np.uint16)), form)


def rgb16(width, height, colour):
    """A PNG of 16 bits a channel, which Pillow can read and not write."""
    rows = (b"\0" + struct.pack(">HHH", *colour) * width) * height
    return png(width, height, rows, depth=16)


def huge():
    """168 megapixels in 20 kB."""
    return png(12_000, 14_000, (b"\0" + bytes(1500)) * 14_000, depth=1, colour=0)


def png(width, height, rows, depth, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def animated(form="GIF", colours=("red", "blue")):
    first, *rest = [plain(colour) for colour in colours]
    return encoded(first, form, save_all=True, append_images=rest)


def cmyk():
    return encoded(plain("red").convert("CMYK"), "JPEG", quality=95)


def see_through_palette():
    """Half red, half fully transparent."""
    image = plain("red")
    image.paste("blue", (0, 0, 10, 12))
    paletted = image.quantize(2)
    clear = paletted.getpixel((0, 0))
    return encoded(paletted, "PNG", transparency=clear)
