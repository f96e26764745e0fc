"""What a language model knows at the end of its prompt, before it has to say it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from vlalign.infer.asked_model import AskedModel
from vlalign.registry import JUDGES, MODELS
from vlalign.specs import ModelSpec
from vlalign.types import Item


@JUDGES.register("hidden")
@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The state of the model's last layer, many numbers a pair: calibrated they are a probe of that layer
    (Alain and Bengio 2016, arXiv:1610.01644).

    `model`: an `llm_reranker` or `mllm_reranker` with its prompt; its `layer` is the one that is probed, and
    those above it are not computed. A small model's middle layer often knows more than its answer tells.
    """

    model: Annotated[ModelSpec, MODELS]

    def build(self) -> "HiddenJudge":
        """Found, not yet loaded. Raises UserError."""
        return HiddenJudge(self.model)


class HiddenJudge(AskedModel):
    """As many numbers as the model is wide."""

    @property
    def width(self) -> int:
        """Of the model, which is loaded for it."""
        return int(self.scorer.model.net.config.get_text_config().hidden_size)

    def measure(self, query: Item, candidates: Sequence[Item]) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together."""
        yield dict(enumerate(self.scorer.hidden(query, candidates).tolist()))
