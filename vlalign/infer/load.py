"""A saved model that embeds what people have: paths and pictures of any mode, and strings."""

import threading
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlalign.data.images import decode, settle
from vlalign.models import weights
from vlalign.models.caption_model import CaptionModel
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.pair import DualEncoder
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.types import BadRow, UserError

LOADING = [threading.Lock() for _ in range(64)]


def load(
    model: str | Path,
    revision: str | None = None,
    device: str | torch.device | None = None,
    batch: int = 64,
    trust_remote_code: bool = False,
) -> DualEncoderEmbedder | RerankScorer:
    """A folder that this package, open_clip or transformers wrote, or a Hub id; to embed, rank or write with.

    `batch`: rows of one forward of a dual encoder, whose `encode_image` takes PIL images and paths, and reads
    them whole: upright, 8 bits a channel, transparency on white. Raises UserError.
    """
    if batch < 1:
        raise UserError(f"batch must be >= 1, got {batch}")
    built = weights.opened(model, revision, device, trust_remote_code)
    if isinstance(built, DualEncoder):
        return DualEncoderEmbedder(built, batch=batch, opening=picture)
    kind = CaptionWriter if isinstance(built, CaptionModel) else RerankScorer
    return kind(built, opening=picture)


def load_embedder(model: str | Path) -> DualEncoderEmbedder:
    """The same where only a dual encoder will do. Raises UserError."""
    return weights.load(model, opening=picture)


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
