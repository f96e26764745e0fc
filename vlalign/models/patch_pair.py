"""A dual encoder whose pictures are patches: a picture with a text is what the text chooses of it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlalign.models.pair import DualEncoder
from vlalign.models.tower import TowerModule
from vlalign.ops.patches import chosen
from vlalign.types import Batch, Embeddings, Inputs, UserError


class PatchEncoder(DualEncoder):
    """In `forward` a picture is what its own text chooses of it; alone it is the mean of all its patches."""

    def __init__(
        self,
        image: TowerModule,
        text: TowerModule,
        *,
        share: float,
        temperature: float | None,
        **options: Any,
    ) -> None:
        """`share`, `temperature`: as `chosen` has them. `options`: of `DualEncoder`. Raises UserError."""
        try:
            image.unpool()
        except UserError as error:
            raise UserError(f"model.image: {error}") from error
        super().__init__(image, text, **options)
        self.share, self.temperature = share, temperature

    def forward(self, batch: Batch) -> Embeddings:
        """Of pairs of pictures and texts."""
        if "towers" in batch:
            raise UserError("a patch_encoder learns from pictures with captions, and these are queries")
        patches, key = self._projected(batch["query"]), self.encode_text(batch["key"])
        with torch.autocast(key.device.type, enabled=False):
            query, _ = chosen(patches, key[:, None], self.share, self.temperature)
        ready = {"query": {"unit": query[:, 0]}, "key": {"unit": key}}
        return super().forward({**batch, **ready})

    def encode_patches(self, inputs: Inputs) -> Tensor:
        """Unit rows [N, n, D], float32."""
        return normalize(self._projected(inputs), dim=-1)

    def _projected(self, inputs: Inputs) -> Tensor:
        features = inputs["features"] if "features" in inputs else self.image(inputs)
        projected: Tensor = self.image_head(features).float()
        return projected

    def _encode(self, side: str, inputs: Inputs) -> Tensor:
        if "unit" in inputs:
            return inputs["unit"]
        if side == "text":
            return super()._encode(side, inputs)
        return normalize(self._projected(inputs).mean(1), dim=-1)
