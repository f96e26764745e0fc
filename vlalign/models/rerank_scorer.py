"""A reranker for people who have texts and pictures, not tokens."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlalign.models.reranker import Reranker
from vlalign.types import BadRow, Item, UserError


class RerankScorer:
    """Scores with a live model, whose training mode it leaves as it was. `model` is the model itself.

    Prompts of about one length go together. `tokens`: at most so many in a forward, padding and what they
    share counted for each; that bounds memory, and changes no score.
    """

    def __init__(self, model: Reranker, tokens: int = 16_384) -> None:
        """Raises UserError."""
        if tokens < 1:
            raise UserError(f"tokens must be >= 1, got {tokens}")
        self.model, self.tokens = model, tokens

    def score(self, queries: Sequence[Any], candidates: Sequence[Sequence[Any]]) -> list[Tensor]:
        """Raw scores [C_q] of each query's candidates, float32 on the CPU.

        A str is a text, a `Path` a picture, an `Item` both. Raises UserError.
        """
        for several in (queries, candidates, *candidates):
            if isinstance(several, (str, bytes, Path, Item)):
                raise UserError(f"give lists of queries and of each one's candidates, got {several!r:.80}")
        if len(queries) != len(candidates):
            raise ValueError(f"expected candidates for each of {len(queries)} queries, got {len(candidates)}")
        training = self.model.training
        self.model.eval()
        try:
            return [self._one(query, own) for query, own in zip(queries, candidates, strict=True)]
        finally:
            self.model.train(training)

    @torch.no_grad()
    def _one(self, query: Any, candidates: Sequence[Any]) -> Tensor:
        process, device = self.model.process, self.model.answers.device
        scores = torch.zeros(len(candidates))
        try:
            read = process.read(as_item(query), [as_item(each) for each in candidates])
        except BadRow as error:
            raise UserError(f"the query {query!r:.80} cannot be scored: {error}") from error
        inputs = {name: x.to(device) for name, x in process.join([read]).items()}
        prefix = self.model.prefix(inputs) if inputs["prefix_ids"].shape[1] else None
        for places in self._batches([len(each) for each in read]):
            width = int(inputs["mask"][places].sum(1).max())
            some = {name: inputs[name][places, :width] for name in ("input_ids", "mask")}
            some["owner"] = inputs["owner"][places]
            scores[places] = self.model.answer(self.model.last(inputs | some, prefix)).scores.cpu()
        if lost := int((~scores.isfinite()).sum()):
            raise UserError(f"{lost} of {len(scores)} scores are not finite; look at the model's weights")
        return scores

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of prompts of about one length, the shortest first."""
        order = sorted(range(len(lengths)), key=lambda at: lengths[at])
        batch: list[int] = []
        for at in order:
            if batch and lengths[at] * (len(batch) + 1) > self.tokens:
                yield batch
                batch = []
            batch.append(at)
        if batch:
            yield batch


def as_item(value: Any) -> Item:
    """Raises UserError for what is neither a text nor a picture."""
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return Item(text=value)
    if isinstance(value, Path):
        return Item(images=(value,))
    raise UserError(f"expected a str, a Path or an Item, got {type(value).__name__}: {value!r:.80}")
