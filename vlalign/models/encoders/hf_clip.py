"""A whole model of transformers: the CLIP and SigLIP families."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from vlalign.models import hf_halves, hf_towers
from vlalign.models.pair import Bias, DualEncoder, Scale, take_over
from vlalign.models.tower import Adaptation
from vlalign.registry import MODELS
from vlalign.types import UserError


@MODELS.register("hf_clip")
@dataclass(frozen=True, kw_only=True)
class HFClip:
    """`id`: a Hub id or a folder; without `pretrained` its config and processor, and random weights.

    `image`, `text`: how each tower learns. `scale`, `bias`: None keeps the model's own.
    """

    id: str
    pretrained: bool = True
    image: Adaptation = Adaptation()
    text: Adaptation = Adaptation()
    scale: Scale | None = None
    bias: Bias | None = None

    def build(self) -> DualEncoder:
        """The model, weights loaded, locked and adapted, on the CPU, in training mode. Raises UserError."""
        whole = hf_towers.load(self.id, self.pretrained, trust_remote_code=False)
        if whole.config.model_type not in hf_halves.WHOLE:
            raise UserError(
                f"{self.id}: hf_clip reads models of the families {', '.join(hf_halves.WHOLE)}, this one is "
                f"'{whole.config.model_type}'"
            )
        processor = hf_towers.processor_of("AutoProcessor", self.id)
        text_config = whole.config.text_config
        hf_towers.require_vocabulary(self.id, processor.tokenizer, text_config)
        dim = getattr(whole.config, "projection_dim", None) or text_config.projection_size
        image = hf_halves.HFClipImage(whole, processor, dim)
        text = hf_halves.HFClipText(whole, processor.tokenizer, dim)
        bias = getattr(whole, "logit_bias", None)
        if bias is None and self.bias not in (None, Bias()):
            raise UserError(
                f"{self.id}: bias: models of the family '{whole.config.model_type}' are saved without one; "
                "leave it out, or take a SigLIP model or open_clip"
            )
        model = take_over(image, text, dim, whole.logit_scale, bias, (self.scale, self.bias))
        model.adapt(self.image, self.text)
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder, with its weights."""
        return replace(self, id=str(folder), pretrained=True)

    def write(self, model: DualEncoder, state: Mapping[str, Tensor], folder: Path) -> None:
        """`state`: plain (`DualEncoder.plain_state`)."""
        hf_halves.write_model(folder, model.image, state)
