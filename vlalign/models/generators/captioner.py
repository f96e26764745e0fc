"""A multimodal language model that captions pictures, Liu et al. 2023, https://arxiv.org/abs/2304.08485."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from torch import Tensor

from vlalign.models import causal, multimodal
from vlalign.models.assembly import Assembly
from vlalign.models.caption_model import CaptionModel
from vlalign.models.caption_prompts import CaptionPrompts
from vlalign.models.lora import Lora
from vlalign.models.pictures import Pictures
from vlalign.registry import MODELS


@MODELS.register("captioner")
@dataclass(frozen=True, kw_only=True)
class Captioner:
    """The answer of a conversation about a picture is its caption. What is saved is transformers' own folder.

    `id`: a Hub id or a folder of the Qwen-VL, SmolVLM and Llava families, without `pretrained` with random
    weights; or `made` of a tower and a language model. `ask`: what the user says after the picture.
    `length`: tokens of picture, question and caption; the end of a longer caption is cut. `pixels`: a picture
    of more is made smaller first. `learn`: the parts whose weights change, the projector's alone as in the
    paper's first stage; with `lora` the language model's are adapters. `dtype`: of all weights.
    """

    id: str | None = None
    made: Assembly | None = None
    pretrained: bool = True
    ask: str = "Describe the picture in a few words."
    length: int = 512
    pixels: int | None = None
    learn: tuple[multimodal.Part, ...] = ("projector",)
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    reads = "captions"

    def __post_init__(self) -> None:
        if (self.id is None) == (self.made is None):
            raise ValueError("name either the id of a model, or what it is made of")
        if self.made is not None and not self.pretrained:
            raise ValueError("pretrained: of a model that is made, set made.pretrained")
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")
        multimodal.check(self.learn, self.lora, self.pixels)

    def build(self) -> CaptionModel:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""
        if self.made is not None:
            net, processor = self.made.build(self.dtype)
        else:
            net, processor = multimodal.load(str(self.id), self.pretrained, self.dtype)
        process = CaptionPrompts(Pictures(processor, self.pixels), self.ask, self.length)
        model = CaptionModel(net, process, self.learn, self.lora)
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder."""
        return replace(self, id=str(folder), made=None, pretrained=True)

    def write(self, model: CaptionModel, state: Mapping[str, Tensor], folder: Path) -> None:
        """A folder that `from_pretrained` loads. `state`: plain (`Ranker.plain_state`)."""
        causal.write(model.net, model.process.pictures.processor, state, folder)
