"""Pictures as a processor of transformers has them: words that stand in a prompt, numbers for a tower."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlalign.types import BadRow, Item, UserError

READ = ("pixel_values", "image_grid_thw", "pixel_attention_mask")  # what towers may want
SIDES = "\ue000\ue001"  # letters of nobody: what a picture stands between, where its mark is looked for


@dataclass(frozen=True)
class Picture:
    """`text`: what stands in the prompt, `tokens` of it in the place of features.

    `digest`: equal where all that the tower reads is. `tensors`: by the names of the tower's arguments; the
    rows of `pixel_values` are patches or tiles.
    """

    text: str
    tokens: int
    digest: bytes
    tensors: Mapping[str, Tensor]


class Pictures:
    """Reads RGB pictures; to be pickled into a loader's workers."""

    def __init__(self, processor: Any, pixels: int | None = None) -> None:
        """`pixels`: a picture of more is made smaller first. Raises UserError for an unknown processor."""
        self.processor, self.pixels = processor, pixels
        self.mark = _mark(processor)
        token = getattr(processor, "image_token_id", None)
        named = processor.tokenizer.convert_tokens_to_ids(processor.image_token)
        self.token: int = named if token is None else token
        odd = set(self._processed(Image.new("RGB", (32, 32)))) - {*READ, "input_ids", "attention_mask"}
        if odd := odd - {"mm_token_type_ids", "token_type_ids", "rows", "cols"}:
            raise UserError(
                f"{type(processor).__name__}: it gives {', '.join(sorted(odd))} of a picture, which no "
                "reranker here reads; take a model of the Qwen-VL, SmolVLM or Llava families"
            )

    def read(self, image: Image.Image) -> Picture:
        """As the processor sees it. Raises BadRow `picture` where it cannot."""
        try:
            found = self._processed(self._smaller(image))
        except (ValueError, TypeError) as error:  # such as a side 200 times the other
            raise BadRow("picture", f"the processor takes no such picture: {error}") from error
        tensors = {name: torch.as_tensor(found[name]) for name in READ if name in found}
        if tensors["pixel_values"].ndim == 5:  # [1, tiles, ...]: the tiles of one picture
            for name in {"pixel_values", "pixel_attention_mask"} & set(tensors):
                tensors[name] = tensors[name][0]
        told = b"".join(x.contiguous().numpy().tobytes() for x in tensors.values())
        ids = found["input_ids"][0]
        text = self.processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        tokens = int((ids == self.token).sum())
        return Picture(text, tokens, blake2b(told, digest_size=16).digest(), tensors)

    def _processed(self, image: Image.Image) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.processor(
            text=[self.mark], images=[[image]], return_tensors="pt", add_special_tokens=False
        )
        return found

    def _smaller(self, image: Image.Image) -> Image.Image:
        """The whole picture in at most `pixels`."""
        if self.pixels is None or image.width * image.height <= self.pixels:
            return image
        part = (self.pixels / (image.width * image.height)) ** 0.5
        size = max(int(image.width * part), 1), max(int(image.height * part), 1)
        return image.resize(size, Image.Resampling.BICUBIC)


def joined(pictures: Sequence[Picture], prefix: str = "", look: bool = True) -> dict[str, Tensor]:
    """What a tower reads of several at once, rows side by side, and `picture_rows`: how many are whose.

    Without `look` their sizes alone, where the network wants them.
    """
    if not pictures:
        return {}
    names = [name for name in pictures[0].tensors if look or name == "image_grid_thw"]
    found = {name: torch.cat([each.tensors[name] for each in pictures]) for name in names}
    found["picture_rows"] = torch.tensor([len(each.tensors["pixel_values"]) for each in pictures])
    return {f"{prefix}{name}": x for name, x in found.items()}


def refuse(item: Item, ignore: bool) -> None:
    """Raises BadRow where it shows any, with `ignore` only where it has no text to be read instead."""
    if item.images and not (ignore and item.text.strip()):
        raise BadRow(
            "picture",
            "a query or a document has a picture, and this reranker reads texts alone; give it a text beside "
            "its picture and the model `pictures: ignore`, or take a model that sees",
        )


def _mark(processor: Any) -> str:
    """What a model's own conversations have in a picture's place."""
    alone: str = processor.image_token
    if not processor.chat_template:
        return alone
    before, after = ({"type": "text", "text": side} for side in SIDES)
    message = {"role": "user", "content": [before, {"type": "image"}, after]}
    text = processor.apply_chat_template([message], tokenize=False)
    between = text.partition(SIDES[0])[2].partition(SIDES[1])[0]
    return between if alone in between else alone  # some put every picture before all text
