"""An evaluator that fails on the second process alone, between two forwards."""

from dataclasses import dataclass

import torch.distributed as dist
from PIL import Image

from vlalign.types import DataError


@dataclass(frozen=True, kw_only=True)
class Stumbles:
    every: int = 1

    def __call__(self, model, limits):
        pictures = [Image.new("RGB", (32, 32))]
        model.encode_image(pictures)
        if dist.get_rank() == 1:
            raise DataError("the second process cannot read its data")
        model.encode_image(pictures)
        return []
