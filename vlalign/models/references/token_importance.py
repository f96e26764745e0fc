"""How much each token of a caption matters inside a frozen language model: RSQ's measures, for training."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any

import torch
from torch import Tensor

from vlalign.models.references.language_model import LanguageModel, refuse_strange
from vlalign.models.references.unigram import occurrences
from vlalign.models.watched import Watched, blocks, showing
from vlalign.registry import IMPORTANCES, REFERENCES, encode
from vlalign.specs import Importance
from vlalign.types import Source, UserError


@REFERENCES.register("token_importance")
@dataclass(frozen=True, kw_only=True)
class TokenImportance(LanguageModel):
    """What a measure of importance finds in one layer, Sung et al. 2025, https://arxiv.org/abs/2503.01820.

    They weigh the tokens that a quantiser reads; here a captioner learns by them. `by`: the measure. `layer`:
    from 0; -1 is the last. A caption is read alone, after what begins a text, which takes part, untold.
    """

    by: Annotated[Importance, IMPORTANCES]
    layer: int = -1

    gives = "importance"

    def build(self, process: Any, source: Source, device: torch.device) -> "Measured":
        """Loaded, captions counted. Raises UserError."""
        model, digest = self.opened(process, device)
        if not -len(blocks(model.net)) <= self.layer < len(blocks(model.net)):
            raise UserError(
                f"data.reference: {self.model} has {len(blocks(model.net))} layers, got layer {self.layer}"
            )
        counts = occurrences(process, source)
        texts = blake2b(counts.tobytes(), digest_size=16).hexdigest()
        told = f"{encode(self.by, component=True)} layer {self.layer} of {digest} among {texts}"
        return Measured(self, model, torch.from_numpy(counts).to(device), told)


class Measured:
    """A measure of one layer of a language model. `counts`: of each token, in all captions."""

    def __init__(self, spec: TokenImportance, model: Any, counts: Tensor, digest: str) -> None:
        self.spec, self.model, self.counts, self.digest = spec, model, counts, digest

    @torch.no_grad()
    def __call__(self, captions: Sequence[Sequence[int]]) -> list[Tensor]:
        """Scores of each token. Raises DataError for a token that the model has not."""
        net = self.model.net
        refuse_strange(captions, self.spec.model, len(net.get_input_embeddings().weight))
        attends, found = bool(getattr(self.spec.by, "attends", False)), list[Tensor]()
        with showing(net, attends):
            for caption in captions:
                ids = torch.tensor([self.model.process.first, *caption], device=self.counts.device)
                with Watched(net, self.spec.layer) as watched:
                    net(input_ids=ids[None])
                told = watched.told(ids, self.counts[ids], attends)
                found.append(self.spec.by(told)[1:].float().cpu())
        return found
