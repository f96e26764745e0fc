"""A causal language model of transformers as a reranker: yes or no about a query and a document."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from torch import Tensor

from vlalign.models import causal, cross_encoder_layout
from vlalign.models.lists import Lists
from vlalign.models.lora import Lora
from vlalign.models.prompts import Prompts, TemplateSpec
from vlalign.models.reference import Reference
from vlalign.models.reranker import Reranker
from vlalign.registry import MODELS, TEMPLATES


@dataclass(frozen=True, kw_only=True)
class Answering:
    """What a recipe says of any language model that answers about a pair."""

    id: str
    pretrained: bool = True
    prompt: Annotated[TemplateSpec, TEMPLATES] = field(default_factory=lambda: TEMPLATES.decode("chat"))
    length: int = 512
    layer: int | None = None
    share: bool = True
    lists: Lists | None = None
    reference: Reference | None = None
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"

    reads = "candidates"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")
        if self.layer is not None and self.layer < 1:
            raise ValueError(f"layer must be >= 1, got {self.layer}")
        if self.lists is not None and self.reference is not None:
            raise ValueError("lists: a reference is another way to be taught; leave one of them out")

    @abstractmethod
    def build(self) -> Reranker:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""

    def _made(self, model: Reranker) -> Reranker:
        model.spec = replace(self, prompt=_written_out(model.process))
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder, whose layers are the ones that were kept."""
        return replace(self, id=str(folder), pretrained=True, layer=None)

    def write(self, model: Reranker, state: Mapping[str, Tensor], folder: Path) -> None:
        """A folder that `from_pretrained` loads. `state`: plain (`Reranker.plain_state`)."""
        causal.write(model.net, model.process.words, state, folder)
        cross_encoder_layout.write(model.process, model.words, folder)


@MODELS.register("llm_reranker")
@dataclass(frozen=True, kw_only=True)
class LLMReranker(Answering):
    """`id`: a Hub id or a folder; without `pretrained` its config and tokenizer, and random weights.

    `prompt`: a registered template. `length`: tokens of a prompt; the end of a longer document is cut.
    `layer`: how many layers are kept, None for all; the answer is then read there (an early exit). `share`:
    what the prompts of a query begin with alike is read once. `lists`: in training it is also asked which of
    all candidates is right, for terms `of: numbers`. `reference`: in training each pair is also read beside a
    right answer of its query, for the objective `self_judge`; both are then rated from 0 to 9. `lora`:
    adapters on frozen weights; without, all learns but the vocabulary. `dtype`: of the frozen or learning
    weights. `pictures`: what shows any is refused, or with `ignore` read by its text alone where it has one.
    """

    pictures: Literal["refuse", "ignore"] = "refuse"

    def build(self) -> Reranker:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""
        net, tokenizer = causal.load(self.id, self.pretrained, self.dtype)
        if self.layer is not None:
            causal.cut(net, self.layer, self.id)
        ignore = self.pictures == "ignore"
        process = Prompts(tokenizer, self.prompt, self.length, self.share, ignore=ignore)
        return self._made(Reranker(net, process, self.lora, self.lists, self.reference))


def _written_out(process: Prompts) -> TemplateSpec:
    """What is saved: a tokenizer's own way to write conversations may change, and ours must not."""
    own = process.template
    text = "".join(f"{{{each}}}" if at % 2 else each for at, each in enumerate(process.pieces))
    plain: TemplateSpec = TEMPLATES.get("plain")(
        text=text, instruction=own.instruction, yes=own.yes, no=own.no, start=own.start
    )
    return plain
