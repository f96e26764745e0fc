"""SupReMix, Wu et al. 2023, https://arxiv.org/abs/2309.16633: supervised contrast for ordered labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vlalign.ops.blend import beta, blend
from vlalign.ops.contrast import log_probabilities, mean_over
from vlalign.ops.precision import wide
from vlalign.registry import EMBEDDING_OBJECTIVES
from vlalign.types import Context, Embeddings, UserError


@EMBEDDING_OBJECTIVES.register("sup_re_mix")
@dataclass(frozen=True, kw_only=True)
class SupReMix:
    """Queries against keys by a number a row, `field`, from 0 to 1; keys with the query's are its positives.

    A key counts 1 + `distance_weight` * (difference of numbers) times in the denominator. Each query has up
    to `mixtures` more negatives, itself mixed with a key of another number, its share drawn from Beta(2, 8);
    and up to `mixtures` more positives, a key below and a key above, both nearer than `window`, mixed such
    that their number is its own. All are unit again, and without a gradient unless not `detached`.

    One log-sum-exp is over keys and mixtures, which released code shifts by different maxima; and the mean is
    over the positives, where that code divides by one more. Holds the whole table of cosines.
    """

    field: str
    temperature: float = 0.3
    window: float = 0.05
    distance_weight: float = 1.0
    mixtures: int = 8
    detached: bool = True

    def __post_init__(self) -> None:
        for name in ("temperature", "window"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("distance_weight", "mixtures"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")

    @property
    def fields(self) -> tuple[str, ...]:
        """What it reads of rows."""
        return (self.field,)

    def __call__(self, features: Embeddings, context: Context) -> Tensor:
        """Losses [N]."""
        query, key = wide(features.query), wide(features.key)
        numbers = context.batch["key_fields"][self.field].to(query)
        self._check(numbers)
        away = numbers - context.batch["query_fields"][self.field].to(query)[:, None]  # [N, M]
        generator = context.generator()
        made, apart, there = _harder(query, key, away, self.mixtures, generator)
        between, exact = _between(key, away, self.window, self.mixtures, generator)
        mixed = torch.cat([made, between], 1)
        if self.detached:
            mixed = mixed.detach()
        scores = torch.cat([query @ key.T, torch.einsum("nd,nmd->nm", query, mixed)], 1) / self.temperature
        distance = torch.cat([away.abs(), apart, torch.zeros_like(exact, dtype=away.dtype)], 1)
        counted = torch.cat([torch.ones_like(away), there.to(away), exact.to(away)], 1)
        log_p = log_probabilities(scores, counted * (1 + self.distance_weight * distance))
        return -mean_over(log_p, torch.cat([away == 0, torch.zeros_like(there), exact], 1))

    def _check(self, numbers: Tensor) -> None:
        least, most = (float(x) for x in numbers.aminmax())
        if not (least >= 0 and most <= 1):
            raise UserError(
                f"sup_re_mix compares numbers from 0 to 1, and the field '{self.field}' goes from {least:g} "
                f"to {most:g}; rescale it, or name a field of numbers"
            )


def _harder(
    query: Tensor, key: Tensor, away: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Negatives [N, C, D] near the query, how far their numbers are from its own, and which are there."""
    chosen, there = _drawn(away != 0, count, generator)
    share = beta(tuple(chosen.shape), 2, 8, generator).to(query)
    made = blend(query[:, None], key[chosen], share)
    return made, (1 - share) * away.gather(1, chosen).abs(), there


def _between(
    key: Tensor, away: Tensor, window: float, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Positives [N, C, D] of the query's own number, and which are there."""
    near = away.abs() < window
    below, low = _drawn(near & (away < 0), count, generator)
    above, high = _drawn(near & (away > 0), count, generator)
    there = low & high
    under, over = -away.gather(1, below), away.gather(1, above)
    share = over / torch.where(there, over + under, 1)
    return blend(key[below], key[above], share), there


def _drawn(allowed: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places [N, C] of a row's allowed columns, drawn without repeating, and which are there; C <= count."""
    lot = torch.rand(allowed.shape, generator=generator).to(allowed.device).masked_fill(~allowed, -1)
    drawn = lot.topk(min(count, allowed.shape[1]), 1)
    return drawn.indices, drawn.values >= 0
