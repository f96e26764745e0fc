"""A frozen language model over captions without pictures, Chen et al. 2025, https://arxiv.org/abs/2505.08971."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlalign.models.adapter import digest
from vlalign.models.caption_writer import CaptionWriter
from vlalign.models.generators.text_lm import TextLM
from vlalign.models.layout import located
from vlalign.models.packages import model_folder
from vlalign.registry import REFERENCES
from vlalign.types import DataError, Source, UserError


@REFERENCES.register("language_model")
@dataclass(frozen=True, kw_only=True)
class LanguageModel:
    """Log P(token | what begins a text, the caption's tokens before).

    `model`: a folder, such as a run of `text_lm`, a Hub id, as of `revision`, or `package:NAME`. Its tokens
    must be the captioner's. Without `pretrained` its weights are random, which is a control. `dtype`: of all
    weights.
    """

    model: str
    revision: str | None = None
    pretrained: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"

    gives = "log_probability"

    def __post_init__(self) -> None:
        if not self.model.strip():
            raise ValueError("model must not be empty")

    def build(self, process: Any, source: Source, device: torch.device) -> Any:
        """Loaded. Raises UserError, also where its tokens are not those of `process`."""
        return Likelihood(self.model, *self.opened(process, device))

    def opened(self, process: Any, device: torch.device) -> tuple[Any, str]:
        """The model, frozen, and another digest where its weights are others. Raises UserError."""
        folder = located(model_folder(self.model), self.revision)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # the same random weights in every process and run
            spec = TextLM(id=str(folder), pretrained=self.pretrained, length=process.length, dtype=self.dtype)
            model = spec.build()
        own = model.process.tokenizer.get_vocab()
        _refuse_others(self.model, own, process.tokenizer.get_vocab())
        made = "read" if self.pretrained else "random"
        model = model.requires_grad_(False).eval().to(device)
        return model, f"{digest(folder)} {made} {self.dtype}"


class Likelihood:
    """A `text_lm` over tokens. `name`: what the recipe calls it."""

    def __init__(self, name: str, model: Any, digest: str) -> None:
        self.name, self.digest = name, digest
        self.writer = CaptionWriter(model)
        self.known = len(model.net.get_input_embeddings().weight)

    def __call__(self, captions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Captions of about one length together. Raises DataError for a token that the model has not."""
        refuse_strange(captions, self.name, self.known)
        prompts = [self.writer.model.process.of(each) for each in captions]
        return [-each for each in self.writer.losses_of(prompts)]


def refuse_strange(captions: Sequence[Sequence[int]], name: str, known: int) -> None:
    """Raises DataError for a token that a model of so many has not."""
    if strange := {id for each in captions for id in each if id >= known}:
        raise DataError(
            f"data.reference: a caption has the token {min(strange)}, and {name} has {known}; "
            "leave such captions out, or name another model"
        )


def _refuse_others(name: str, own: Mapping[str, int], captioner: Mapping[str, int]) -> None:
    """Raises UserError unless each token is the captioner's as well, which may have more, as for pictures."""
    if odd := [token for token, id in own.items() if captioner.get(token) != id]:
        raise UserError(
            f"data.reference: {len(odd)} of the {len(own)} tokens of {name} are not the captioner's, such as "
            f"{min(odd)!r}; name a language model with the captioner's own tokenizer"
        )
