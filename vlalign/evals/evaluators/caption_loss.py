"""How likely a captioner finds the captions of pictures, and how likely where it is shown other pictures."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp
from typing import Annotated, Any

import torch
from torch import Tensor

from vlalign.registry import EVALUATORS, SOURCES
from vlalign.specs import EvalRow, SourceSpec
from vlalign.types import BadRow, DataError, Limits, Sample, Source, UserError

TOGETHER = 64  # rows that are in memory at once


@EVALUATORS.register("caption_loss")
@dataclass(frozen=True, kw_only=True)
class CaptionLoss:
    """The mean cross-entropy of a token of the rows' first captions (nats), and its exponential.

    `permuted_loss`, which is also told as chance, is that of the same captions where each row is shown the
    picture of another: what is lower than it was read from the picture. `samples`: at most so many rows,
    drawn by `seed`.
    """

    data: Annotated[SourceSpec, SOURCES]
    dataset: str
    samples: int = 1024
    seed: int = 0
    every: int = 0

    reads = "captions"

    def __post_init__(self) -> None:
        if getattr(self.data, "reads", "pairs") != "pairs":
            raise ValueError("data must be pictures with captions, and has queries with candidates")
        for name, least in (("samples", 2), ("every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def __call__(self, model: Any, limits: Limits) -> list[EvalRow]:
        """One row. Raises DataError for one row alone, UserError for a model that does not caption."""
        if not hasattr(model, "caption"):
            raise UserError("caption_loss: the model writes no captions; name a captioner, or leave it out")
        source, bad = self.data.build(limits), Counter[str]()
        own, other = list[Tensor](), list[Tensor]()
        for rows in self._together(source, bad):
            images, captions = [row["image"] for row in rows], [row["captions"][0] for row in rows]
            own += model.losses(images, captions)
            other += model.losses([*images[1:], images[0]], captions)
        if len(own) < 2:
            raise DataError(f"{self.dataset} has {len(own)} rows that can be read; caption_loss needs two")
        loss, permuted = (float(torch.cat(each).mean()) for each in (own, other))
        skipped = Counter({reason: len(ids) for reason, ids in source.skipped.items()}) + bad
        account = {
            "used": len(own),
            "skipped": dict(skipped),
            "converted": {},
            "licences": [asdict(licence) for licence in source.licences],
        }
        return [
            EvalRow(
                dataset=self.dataset,
                task="caption_loss",
                metrics={"loss": loss, "perplexity": exp(loss), "permuted_loss": permuted},
                chance={"loss": permuted, "perplexity": exp(permuted)},
                exhibits={"rows": account | {"tokens": len(torch.cat(own))}},
            )
        ]

    def _together(self, source: Source, bad: Counter[str]) -> Iterator[Sequence[Sample]]:
        """Rows in an order that is drawn, some at once, and never one alone unless it is the only one."""
        generator, rows = torch.Generator().manual_seed(self.seed), list[Sample]()
        for place in torch.randperm(len(source), generator=generator)[: self.samples].tolist():
            try:
                rows.append(source[place])
            except BadRow as error:
                bad[error.reason] += 1
            if len(rows) == TOGETHER + 2:
                yield rows[:TOGETHER]
                rows = rows[TOGETHER:]
        if rows:
            yield rows
