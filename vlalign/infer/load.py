"""A saved model that embeds what people have: paths and pictures of any mode, and strings."""

import threading
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlalign.data.images import decode, settle
from vlalign.models import weights
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.types import BadRow, UserError

LOADING = [threading.Lock() for _ in range(64)]


def load(
    model: str | Path,
    revision: str | None = None,
    device: str | torch.device | None = None,
    batch: int = 64,
    trust_remote_code: bool = False,
) -> DualEncoderEmbedder:
    """A folder that this package, open_clip or transformers wrote, or a Hub id; ready to embed.

    `batch`: rows of one forward. `encode_image` takes PIL images and paths, and reads them whole: upright,
    8 bits a channel, transparency on white. Raises UserError.
    """
    return weights.load(model, revision, device, batch, trust_remote_code, opening=picture)


def picture(image: Any) -> Image.Image:
    """An RGB picture of a PIL image or a path. Raises UserError for what is no picture."""
    if not isinstance(image, (str, PathLike, Image.Image)):
        raise UserError(f"an image must be a PIL image or a path, got {type(image).__name__}: {image!r:.80}")
    try:
        return _settled(image) if isinstance(image, Image.Image) else decode(Path(image))[0]
    except BadRow as error:
        raise UserError(f"{image}: {error.reason}: {error}") from error


def _settled(image: Image.Image) -> Image.Image:
    # Pillow decodes a file at its first use, which must not happen in two threads: a list may name one
    # picture twice. So one picture has one lock. Paths are opened by each thread for itself.
    with LOADING[hash(id(image)) // 16 % len(LOADING)]:  # objects lie at least 16 bytes apart
        image.load()
        return settle(image)[0]
