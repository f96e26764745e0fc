"""Items that can be written down: every picture of theirs is a file."""

from dataclasses import replace as replaced
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL.Image import Image

from vlalign.files import replace
from vlalign.infer.load import picture
from vlalign.recipe.folder import writing
from vlalign.types import Item


def kept(item: Item, folder: Path) -> Item:
    """With the path of every picture; one that no file has is written into `folder`.

    It is called by the hash of its pixels, so that a picture is written once whoever asks.
    """
    if all(isinstance(image, Path) for image in item.images):
        return item
    return replaced(item, images=tuple(_path(image, folder) for image in item.images))


def written(item: Item) -> dict[str, Any]:
    """Its part of a line that the source `candidates` reads. Every picture is a path."""
    images = [str(Path(image).resolve()) for image in item.images]
    return {**({"text": item.text} if item.text else {}), **({"images": images} if images else {})}


def called(image: Any) -> str:
    """The path of a picture, or the hash of the pixels of one that no file has."""
    if not isinstance(image, Image):
        return str(image)
    image = picture(image)
    return blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).hexdigest()


def _path(image: Any, folder: Path) -> Path:
    if not isinstance(image, Image):
        return Path(image)
    path = folder / f"{called(image)}.png"
    if not path.exists():
        with writing(folder.parent):
            folder.mkdir(parents=True, exist_ok=True)
            replace(path, lambda beside: picture(image).save(beside, "PNG"))
    return path
