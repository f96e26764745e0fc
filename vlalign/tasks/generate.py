"""Generate: a weighted sum of terms over the tokens that a model should write."""

from dataclasses import dataclass

import torch

from vlalign.registry import TASKS
from vlalign.tasks.terms import TokenTerm, named
from vlalign.types import Batch, Context, Loss, TokenLogits


@TASKS.register("generate")
@dataclass(frozen=True, kw_only=True)
class Generate:
    """Captions of pictures, token by token. A step's loss is the mean over all its tokens, not over rows."""

    token_terms: tuple[TokenTerm, ...]

    reads = "captions"
    coupled = False  # a token meets those of its own row alone

    def __post_init__(self) -> None:
        if not self.token_terms:
            raise ValueError("token_terms is empty; name at least one objective, such as cross_entropy")

    @property
    def reads_token_fields(self) -> tuple[str, ...]:
        """Numbers of tokens that weighters read."""
        weighters = [each for term in self.token_terms for each in term.weighters]
        return tuple(dict.fromkeys(name for each in weighters for name in getattr(each, "fields", ())))

    def rows(self, batch: Batch) -> int:
        """Supervised tokens of this process."""
        return len(batch["pairs"]["labels"])

    def loss(self, features: TokenLogits, batch: Batch, step: int, total: int) -> Loss:
        """Sum over local tokens. `parts`: of each term before its scale."""
        terms, context = named(self.token_terms), Context(batch, None, step, total)
        with torch.autocast(features.logits.device.type, enabled=False):
            parts = {name: term.losses(features, context).sum() for name, term in terms.items()}
            scaled = torch.stack([term.scale * parts[name] for name, term in terms.items()])
        return Loss(scaled.sum(), {name: part.detach() for name, part in parts.items()})
