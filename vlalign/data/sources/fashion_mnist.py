"""Fashion-MNIST: 28 x 28 photographs of ten kinds of products, Xiao et al. 2017, https://arxiv.org/abs/1708.07747."""

import gzip
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from vlalign.data.catalogue import CATALOGUE, fetch
from vlalign.data.index import Decoded, Entry, Indexed
from vlalign.registry import SOURCES
from vlalign.types import Limits

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
PREFIXES = {"train": "train", "test": "t10k"}
HEADER = {"images": 16, "labels": 8}  # bytes before the values


@SOURCES.register("fashion_mnist")
@dataclass(frozen=True, kw_only=True)
class FashionMnist:
    """Captioned by the name of the class, which is the field `label` too."""

    split: Literal["train", "test"] = "test"

    def build(self, limits: Limits = Limits()) -> Indexed:
        """Fetch the package when it is not in the cache. Raises DataError."""
        folder = fetch("fashion-mnist") / "usr/share/datasets/fashion-mnist"
        paths = {kind: folder / f"{PREFIXES[self.split]}-{kind}-idx{ndim}-ubyte.gz"
                 for kind, ndim in (("images", 3), ("labels", 1))}  # fmt: skip
        labels = [CLASSES[number] for number in _values(paths["labels"], HEADER["labels"])]
        entries = [
            Entry(f"{self.split}/{number}", (label,), number, {"label": label})
            for number, label in enumerate(labels)
        ]
        licences = CATALOGUE["fashion-mnist"].licences
        return Indexed(entries, partial(_picture, paths["images"]), licences, {}, what="fashion_mnist")


@lru_cache(maxsize=4)
def _values(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), dtype=np.uint8, offset=header)


def _picture(path: Path, number: int) -> Decoded:
    pixels = _values(path, HEADER["images"]).reshape(-1, 28, 28)[number]
    return Image.fromarray(pixels).convert("RGB"), ()
