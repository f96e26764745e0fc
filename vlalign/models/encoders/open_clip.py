"""A whole model of open_clip."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from vlalign.models import open_clip_layout
from vlalign.models.open_clip_towers import OpenClipImage, OpenClipText
from vlalign.models.pair import Bias, DualEncoder, Scale, take_over
from vlalign.models.tower import Adaptation
from vlalign.registry import MODELS


@MODELS.register("open_clip")
@dataclass(frozen=True, kw_only=True)
class OpenClip:
    """`id`: a name that open_clip lists, `hf-hub:ORG/NAME` or `local-dir:FOLDER`; `pretrained`: tag or file.

    `image`, `text`: how each tower learns. `scale`, `bias`: None keeps the model's own.
    """

    id: str
    pretrained: str | None = None
    image_size: int | None = None
    image: Adaptation = Adaptation()
    text: Adaptation = Adaptation()
    scale: Scale | None = None
    bias: Bias | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be >= 1, got {self.image_size}")
        if self.image.prompts or self.text.prompts:
            raise ValueError(
                "prompts: open_clip's own layout has no place for them; take name: dual_encoder, with image "
                "and text: {name: open_clip, ...}"
            )

    def build(self) -> DualEncoder:
        """The model, weights loaded, locked and adapted, on the CPU, in training mode."""
        net, config = open_clip_layout.create(self.id, self.pretrained, self.image_size)
        image = OpenClipImage(net, config)
        text = OpenClipText(net, config, open_clip_layout.tokenizer_of(self.id, config))
        given = (self.scale, self.bias)
        model = take_over(image, text, config["embed_dim"], net.logit_scale, net.logit_bias, given)
        model.adapt(self.image, self.text)
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder, with its weights."""
        return replace(self, id=f"{open_clip_layout.LOCAL}{folder}", pretrained=None)

    def write(self, model: DualEncoder, state: Mapping[str, Tensor], folder: Path) -> None:
        """`state`: plain (`DualEncoder.plain_state`)."""
        open_clip_layout.write_model(folder, model.image, model.text, state)
