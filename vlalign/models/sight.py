"""How a multimodal network of transformers sees: its tower and projector, apart from its language model."""

from collections.abc import Mapping, MutableMapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from vlalign.models.pictures import Picture, joined

Seen = tuple[Tensor, ...]  # of one picture: [tokens, width], and what goes to deeper layers, if any


class Sight:
    """Features of pictures, each on its own, so that they can be kept and given again."""

    def __init__(self, body: Any) -> None:
        """`body`: the network without its head."""
        self.body = body

    def look(self, inputs: Mapping[str, Tensor]) -> list[Seen]:
        """`pixel_values` [rows, ...], `picture_rows` [N] and what else the tower reads -> N pictures."""
        rows, told = inputs["picture_rows"].tolist(), {"pixel_values": inputs["pixel_values"]}
        if "image_grid_thw" in inputs:
            told["image_grid_thw"] = inputs["image_grid_thw"]
        if "pixel_attention_mask" in inputs:  # by a tower that wants a table of pictures and tiles
            told = {name: inputs[name][None] for name in ("pixel_values", "pixel_attention_mask")}
        told["pixel_values"] = told["pixel_values"].to(self.body.dtype)
        found = self.body.get_image_features(**told, return_dict=True)
        layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
        return list(zip(*(_split(layer, rows) for layer in layers), strict=True))

    def known(
        self, pictures: Sequence[Picture], seen: MutableMapping[bytes, Seen], device: torch.device
    ) -> list[Seen]:
        """Each looked at once. `seen`: pictures by their digest; those that are not yet there come in."""
        new = {each.digest: each for each in pictures if each.digest not in seen}
        if new:
            inputs = {name: x.to(device) for name, x in joined(list(new.values())).items()}
            seen.update(zip(new, self.look(inputs), strict=True))
        return [seen[each.digest] for each in pictures]

    def told(self, seen: Sequence[Seen]) -> dict[str, Any]:
        """Arguments of the network's forward, for the pictures of a batch in the order they stand in."""
        pooled, *deeper = zip(*seen, strict=True)
        return {
            "mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=pooled, deepstack_features=deeper)}
        }


def _split(features: Any, rows: list[int]) -> Sequence[Tensor]:
    """Of each picture, [tokens, width], from a list of them, or from all rows of all pictures."""
    if len(features) == len(rows):
        return [each.flatten(0, -2) for each in features]
    flat = torch.cat([each.flatten(0, -2) for each in features])
    a_row = len(flat) // sum(rows)
    return torch.split(flat, [a_row * count for count in rows])
