"""A cross-encoder, Nogueira and Cho 2019, https://arxiv.org/abs/1901.04085: BERT reads query and document."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from torch import Tensor

from vlalign.models import pair_classifier
from vlalign.models.lora import Lora
from vlalign.models.packages import model_folder
from vlalign.models.pair_classifier import PairClassifier
from vlalign.models.text_pairs import TextPairs
from vlalign.registry import MODELS
from vlalign.types import UserError


@MODELS.register("cross_encoder")
@dataclass(frozen=True, kw_only=True)
class CrossEncoder:
    """`id`: a Hub id, a folder or `package:NAME`; without `pretrained` only config and tokenizer.

    A plain encoder gets a new head of one output, a saved cross-encoder has its own. `length`: tokens of a
    pair; the end of a longer document is cut. `lora`: adapters on the frozen encoder, the head learns in
    full; without, all learns. `dtype`: of the frozen or learning weights. `pictures`: what shows any is
    refused, or with `ignore` read by its text alone where it has one.
    """

    id: str
    pretrained: bool = True
    length: int = 512
    lora: Lora | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    pictures: Literal["refuse", "ignore"] = "refuse"

    reads = "candidates"

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"length must be >= 1, got {self.length}")

    def build(self) -> PairClassifier:
        """The model, weights loaded, adapted, on the CPU, in training mode. Raises UserError."""
        net, tokenizer, random = pair_classifier.load(
            model_folder(self.id), self.pretrained, self.dtype, self.length
        )
        inside = sorted(name for name in random if name.startswith(f"{net.base_model_prefix}."))
        if self.lora is not None and self.pretrained and inside:
            raise UserError(
                f"model.lora: {self.id} has no {', '.join(inside[:4])}, which would stay random under "
                "adapters; leave lora out, so that all learns"
            )
        process = TextPairs(tokenizer, self.length, self.pictures == "ignore")
        model = PairClassifier(net, process, self.lora)
        model.spec = self
        return model

    def at(self, folder: Path, trust_remote_code: bool) -> Self:
        """The same model from a saved folder."""
        return replace(self, id=str(folder), pretrained=True)

    def write(self, model: PairClassifier, state: Mapping[str, Tensor], folder: Path) -> None:
        """A folder that `from_pretrained` loads. `state`: plain (`Ranker.plain_state`)."""
        pair_classifier.write(model, state, folder)
