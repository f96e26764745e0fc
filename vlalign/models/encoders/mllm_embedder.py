"""A language model as the tower of both sides, Jiang et al. 2024, https://arxiv.org/abs/2407.12580 (E5-V).

So do VLM2Vec, Jiang et al. 2024, https://arxiv.org/abs/2410.05160, and UniME-V2, Gu et al. 2025,
https://arxiv.org/abs/2510.13515: each side is asked for in one word, and the state that says it is its row.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from torch import Tensor

from vlalign.models import causal, multimodal
from vlalign.models.lora import Lora
from vlalign.models.one_tower import LanguageTower, OneTower, Pool, load
from vlalign.models.one_word import OneWord, SummaryPrompts
from vlalign.models.pair import Bias, Scale, side_state
from vlalign.models.pictures import Pictures
from vlalign.registry import MODELS


@MODELS.register("mllm_embedder")
@dataclass(frozen=True, kw_only=True)
class MLLMEmbedder:
    """What is saved is transformers' own folder; the manifest beside it has what scale and bias have learned.

    `id`: a Hub id or a folder of the Qwen-VL, SmolVLM and Llava families, or of a causal language model,
    which reads texts alone; without `pretrained` with random weights. `prompt`: what is said of a picture and
    of a text. `pool`: the last token's state, or the mean of all tokens'. `length`: tokens of a text's
    prompt, whose end is cut; no picture is cut, and `pixels` makes one of more smaller first, as large ones
    should be. `learn`: the parts whose weights change, never the vocabulary; with `lora`, the language
    model's are adapters. `dtype`: of all weights.
    """

    id: str
    pretrained: bool = True
    prompt: OneWord = OneWord()
    pool: Pool = "last"
    length: int = 512
    pixels: int | None = None
    learn: tuple[multimodal.Part, ...] = ("language",)
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    scale: Scale = Scale()
    bias: Bias = Bias()

    whole = True  # the folder that it writes is transformers' own

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")
        multimodal.check(self.learn, self.lora, self.pixels)

    def build(self) -> OneTower:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""
        net, tokenizer, processor = load(self.id, self.pretrained, self.dtype)
        pictures = None if processor is None else Pictures(processor, self.pixels)
        process = SummaryPrompts(tokenizer, self.prompt, self.length, pictures)
        tower = LanguageTower(net, process, self.pool, self.learn, self.lora)
        model = OneTower(tower, self.scale, self.bias)
        model.spec = replace(self, prompt=process.written)
        model.train()
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder, whose weights have the adapters in them."""
        return replace(self, id=str(folder), pretrained=True, lora=None)

    def write(self, model: Any, state: Mapping[str, Tensor], folder: Path) -> None:
        """A folder that `from_pretrained` loads. `state`: plain (`DualEncoder.plain_state`).

        The model's spec is told the scale and the bias of that state, for the manifest.
        """
        pictures, tokenizer = model.image.process.pictures, model.image.process.tokenizer
        words = tokenizer if pictures is None else pictures.processor
        own = side_state(side_state(state, "image"), "net")
        causal.write(model.net, words, own, folder)
        learned = min(math.exp(state["scale"].item()), self.scale.max)
        model.spec = replace(
            self,
            scale=replace(self.scale, init=learned),
            bias=replace(self.bias, init=state["bias"].item()),
        )
