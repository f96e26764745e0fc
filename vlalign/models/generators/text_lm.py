"""A causal language model of captions that sees no picture: what a captioner's words are compared with."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from torch import Tensor

from vlalign.models import causal
from vlalign.models.caption_model import CaptionModel
from vlalign.models.caption_texts import CaptionTexts
from vlalign.models.lora import Lora
from vlalign.registry import MODELS


@MODELS.register("text_lm")
@dataclass(frozen=True, kw_only=True)
class TextLM:
    """Learns the tokens of captions and what ends them, each after those before it; decodes no picture.

    `id`: a Hub id, a folder or `package:NAME`, without `pretrained` with random weights. `length`: tokens of
    a caption; the end of a longer one is cut. `lora`: adapters on frozen weights; without, all learns.
    `dtype`: of all weights. What is saved is transformers' own folder, and `data.reference` reads it.
    """

    id: str
    pretrained: bool = True
    length: int = 128
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    reads = "captions"

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ValueError(f"length must be >= 2, what begins a text counted, got {self.length}")

    def build(self) -> CaptionModel:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""
        net, tokenizer = causal.load(self.id, self.pretrained, self.dtype)
        model = CaptionModel(net, CaptionTexts(tokenizer, self.length), ("language",), self.lora)
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder."""
        return replace(self, id=str(folder), pretrained=True)

    def write(self, model: CaptionModel, state: Mapping[str, Tensor], folder: Path) -> None:
        """A folder that `from_pretrained` loads. `state`: plain (`Ranker.plain_state`)."""
        causal.write(model.net, model.process.tokenizer, state, folder)
