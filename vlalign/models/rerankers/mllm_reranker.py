"""A multimodal language model of transformers as a reranker: yes or no about texts and pictures."""

from dataclasses import dataclass

from vlalign.models import causal, multimodal
from vlalign.models.pictures import Pictures
from vlalign.models.prompts import Prompts
from vlalign.models.reranker import Reranker
from vlalign.models.rerankers.llm_reranker import Answering
from vlalign.registry import MODELS


@MODELS.register("mllm_reranker")
@dataclass(frozen=True, kw_only=True)
class MLLMReranker(Answering):
    """The fields of `llm_reranker` but `pictures`, for it sees, over the Qwen-VL, SmolVLM and Llava families.

    `pixels`: a picture of more is made smaller first. `learn`: the parts whose weights change; with `lora`,
    the language model's are adapters.
    """

    pixels: int | None = None
    learn: tuple[multimodal.Part, ...] = ("language",)

    def __post_init__(self) -> None:
        super().__post_init__()
        multimodal.check(self.learn, self.lora, self.pixels)

    def build(self) -> Reranker:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""
        net, processor = multimodal.load(self.id, self.pretrained, self.dtype)
        if self.layer is not None:
            causal.cut(net, self.layer, self.id)
        pictures = Pictures(processor, self.pixels)
        process = Prompts(processor.tokenizer, self.prompt, self.length, self.share, pictures)
        multimodal.choose(net, self.learn, self.lora)
        return self._made(Reranker(net, process, self.lora, self.lists, self.reference))
