"""Rows of one side -> the inputs of its tower. All pickle, so that loader workers can run them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from vlalign.types import Inputs

Pool = Literal["argmax", "eos"]  # a causal text tower reads the largest token of a row, or its first `end`


class Processor(Protocol):
    """A picklable callable; `describe` says what decides its output, for the key of cached features."""

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """Inputs of one batch, on the CPU."""
        ...

    def describe(self) -> str:
        """Equal for equal processing, in every process."""
        ...


class TextProcessor(Processor, Protocol):
    """A processor whose inputs [N, T] may be cut to the longest of any rows."""

    def lengths(self, inputs: Inputs) -> Tensor:
        """How many of the T tokens a tower must be given of each row, [N]."""
        ...


def ends(process: Processor) -> tuple[Tensor, Tensor]:
    """What becomes of black and of white pixels, [3, 1, 1] each."""
    pixels = process([Image.new("RGB", (64, 64), end) for end in ("black", "white")])["pixels"]
    black, white = pixels[:, :, pixels.shape[2] // 2, pixels.shape[3] // 2, None, None]
    return black, white


@dataclass(frozen=True)
class Transformed:
    """RGB images through a transform of one image, as open_clip and timm have it."""

    transform: Callable[[Any], Tensor]

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """`pixels` [N, 3, H, W]."""
        return {"pixels": torch.stack([self.transform(image) for image in items])}

    def describe(self) -> str:
        """The transform's steps."""
        return repr(self.transform)


@dataclass(frozen=True)
class HFImages:
    """RGB images through an image processor of transformers."""

    processor: Any

    def __call__(self, items: Sequence[Any]) -> Inputs:
        """`pixels` and whatever else the processor gives (masks and shapes of images of several sizes)."""
        batch = dict(self.processor(images=list(items), return_tensors="pt"))
        return {"pixels": batch.pop("pixel_values"), **batch}

    def describe(self) -> str:
        """The processor's settings."""
        return str(self.processor.to_json_string())


@dataclass(frozen=True)
class OpenClipTexts:
    """Texts through a tokenizer of open_clip, cut to the longest end of text where `pool` finds it by value.

    `pool` and `end`: how the tower finds the token that it reads; without `pool` texts are never cut.
    """

    tokenizer: Any
    pool: Pool | None
    end: int

    def __call__(self, items: Sequence[str]) -> Inputs:
        """`input_ids` [N, T]."""
        ids = self.tokenizer(list(items))
        return {"input_ids": ids[:, : int(self.lengths({"input_ids": ids}).max())].contiguous()}

    def lengths(self, inputs: Inputs) -> Tensor:
        """Up to the token that the tower reads; all T where it is not known which."""
        ids = inputs["input_ids"]
        if self.pool is None:
            return torch.full((len(ids),), ids.shape[1])
        return up_to_end(ids, self.pool, self.end)

    def describe(self) -> str:
        """The tokenizer's settings and vocabulary."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        vocabulary = fingerprint(inner) if inner is not None else str(self.tokenizer.vocab_size)
        clean = getattr(getattr(self.tokenizer, "clean_fn", None), "__name__", "")
        return f"{type(self.tokenizer).__name__} {self.tokenizer.context_length} {clean} {vocabulary}"


@dataclass(frozen=True)
class HFTexts:
    """Texts through a tokenizer of transformers. `masked`: the tower is told which tokens are padding.

    `pool` and `end`: how a causal tower finds the token that it reads, where it does so by value.
    """

    tokenizer: Any
    length: int
    padding: Literal["longest", "max_length"]
    masked: bool
    pool: Pool | None = None
    end: int = 0

    def __call__(self, items: Sequence[str]) -> Inputs:
        """`input_ids` [N, T], and `attention_mask` when masked."""
        options = {"padding": self.padding, "truncation": True, "max_length": self.length}
        batch = self.tokenizer(list(items), return_tensors="pt", **options)
        return {name: batch[name] for name in ("input_ids", "attention_mask")[: 1 + self.masked]}

    def lengths(self, inputs: Inputs) -> Tensor:
        """Up to the token that the tower reads, else the last that is no padding, else all T."""
        if self.pool is not None:
            return up_to_end(inputs["input_ids"], self.pool, self.end)
        if self.padding == "max_length":  # a tower may read the last place, padding or not, as SigLIP's does
            return torch.full((len(inputs["input_ids"]),), inputs["input_ids"].shape[1])
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
        return (mask * torch.arange(1, mask.shape[1] + 1)).amax(1).clamp(min=1)

    def describe(self) -> str:
        """The tokenizer's settings and vocabulary."""
        return f"{self.length} {self.padding} {self.masked} {fingerprint(self.tokenizer)}"


def up_to_end(ids: Tensor, pool: Pool, end: int) -> Tensor:
    """How many tokens [N] there are up to the one that is read of each row of `ids` [N, T]."""
    return 1 + (ids if pool == "argmax" else (ids == end).int()).argmax(-1)


def fingerprint(tokenizer: Any) -> str:
    """A hash of what a tokenizer of transformers does."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        told = repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), tokenizer.padding_side))
    else:
        from tokenizers import Tokenizer

        plain = Tokenizer.from_str(backend.to_str())
        plain.no_padding()  # both are set by each call
        plain.no_truncation()
        told = f"{plain.to_str()} {tokenizer.padding_side}"
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
