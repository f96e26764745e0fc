"""Texts choose patches, our reconstruction of SimCroP, Wang et al. 2025, https://arxiv.org/abs/2509.08311.

By the paper's description: its code of pre-training is not published. Neither its masked modelling nor its
fusion of words and patches is here.
"""

from dataclasses import dataclass

from vlalign.models.encoders.dual_encoder import DualEncoderSpec
from vlalign.models.patch_pair import PatchEncoder
from vlalign.registry import MODELS


@MODELS.register("patch_encoder")
@dataclass(frozen=True, kw_only=True)
class PatchEncoderSpec(DualEncoderSpec):
    """A `dual_encoder` in which the row of a picture, while it learns, is made for its own text.

    It is the mean of the `share` of patches most like the text, weighed by the softmax of their cosines over
    `temperature`; null: all alike, so that with a `share` of 1 the text chooses nothing. A picture alone is
    the mean of its patches; `encode_patches` of a loaded model gives these, of which `vlalign.ops.patches`
    tells what a text would choose.
    """

    share: float = 0.1
    temperature: float | None = 0.1

    one_text = True  # that a picture's row is made for

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be > 0 and <= 1, got {self.share}")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(f"temperature must be > 0, or null, got {self.temperature}")

    def build(self) -> PatchEncoder:
        """The model, weights loaded, locked and adapted, on the CPU, in training mode. Raises UserError."""
        model = PatchEncoder(
            self.image.build("image", self.dim),
            self.text.build("text", self.dim),
            share=self.share,
            temperature=self.temperature,
            dim=self.dim,
            head=self.head,
            scale=self.scale,
            bias=self.bias,
        )
        model.adapt(self.image, self.text)
        model.spec = self
        return model
