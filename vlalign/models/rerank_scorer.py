"""A reranker for people who have texts and pictures, not tokens."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from vlalign.models.embedder import as_it_is
from vlalign.models.ranker import Ranker
from vlalign.models.sight import Seen
from vlalign.models.turns import Turn, TurnPrompts
from vlalign.types import BadRow, Item, UserError

KEPT = 2**28  # bytes of features of pictures
LARGE = 1024  # tokens from which on a batch is as fast as a larger one
NEAR = 4096  # tokens from which on a CPU waits for memory


class RerankScorer:
    """Scores with a live model, whose training mode it leaves as it was. `model` is the model itself.

    Prompts of about one length go together. `tokens`: at most so many in a forward, padding and what they
    share counted for each; that bounds memory but for one query's pictures, and changes no score. On a CPU
    they are `NEAR` at most, which is faster. `opening` makes an RGB picture of what items have. What the
    tower gives of a picture is kept for the next query.
    """

    def __init__(
        self, model: Ranker, tokens: int = 16_384, opening: Callable[[Any], Image] = as_it_is
    ) -> None:
        """Raises UserError."""
        if tokens < 1:
            raise UserError(f"tokens must be >= 1, got {tokens}")
        self.model, self.tokens, self.opening = model, tokens, opening
        self.seen: dict[bytes, Seen] = {}

    def score(
        self,
        queries: Sequence[Any],
        candidates: Sequence[Sequence[Any]],
        before: Sequence[Sequence[Sequence[Turn]]] | None = None,
    ) -> list[Tensor]:
        """Raw scores [C_q] of each query's candidates, float32 on the CPU.

        A str is a text, a `Path` a picture, an `Item` both. `before`: of each candidate, turns that stand in
        the conversation before its question. Raises UserError.
        """
        for several in (queries, candidates, *candidates):
            if isinstance(several, (str, bytes, Path, Item)):
                raise UserError(f"give lists of queries and of each one's candidates, got {several!r:.80}")
        if len(queries) != len(candidates):
            raise ValueError(f"expected candidates for each of {len(queries)} queries, got {len(candidates)}")
        with self._in_use():
            found = [
                self._one(query, own, self.model.scores, told)
                for query, own, told in zip(queries, candidates, before or [()] * len(queries), strict=True)
            ]
        for scores in found:
            if lost := int((~scores.isfinite()).sum()):
                raise UserError(f"{lost} of {len(scores)} scores are not finite; look at the model's weights")
        return found

    def hidden(self, query: Any, candidates: Sequence[Any], before: Sequence[Sequence[Turn]] = ()) -> Tensor:
        """Of a model that answers by a word: the hidden states that its answers are read from, [C, width].

        Float32 on the CPU. `before`: as of `score`, for each candidate. Raises UserError.
        """
        of = getattr(self.model, "hidden", None)
        if of is None:
            raise UserError(f"a {type(self.model).__name__} has no hidden state that it answers from")
        with self._in_use():
            return self._one(query, candidates, of, before)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Inside, the model is in evaluation mode, and has no gradients."""
        training = self.model.training
        self.model.eval()
        if training:  # the weights may be others than before
            self.seen.clear()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(training)

    @cached_property
    def _turns(self) -> TurnPrompts:
        return TurnPrompts(self.model.process)

    def _one(
        self,
        query: Any,
        candidates: Sequence[Any],
        of: Callable[..., Tensor],
        before: Sequence[Sequence[Turn]] = (),
    ) -> Tensor:
        try:
            asked, *items = (self._item(each) for each in (query, *candidates))
            if any(before):
                told = [
                    [Turn(self._item(q), self._item(c), answer) for q, c, answer in own] for own in before
                ]
                read = self._turns.read(asked, items, told)
            else:
                read = self.model.process.read(asked, items)
        except BadRow as error:
            raise BadRow(error.reason, f"the query {query!r:.80} cannot be scored: {error}") from error
        found = of(read, self._batches([len(each) for each in read]), self.seen)
        self._forget()
        return found

    def _forget(self) -> None:
        """The pictures that were seen first, where all are too many to keep."""
        while sum(x.nbytes for each in self.seen.values() for x in each) > KEPT:
            del self.seen[next(iter(self.seen))]

    def _item(self, value: Any) -> Item:
        """Its pictures opened. Raises BadRow, UserError."""
        item = as_item(value)
        return replace(item, images=tuple(self.opening(each) for each in item.images))

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of prompts of about one length, the shortest first, little of a large batch padding."""
        order = sorted(range(len(lengths)), key=lambda at: lengths[at])
        most = min(self.tokens, NEAR) if self.model.device.type == "cpu" else self.tokens
        batch, real = list[int](), 0
        for at in order:
            full = lengths[at] * (len(batch) + 1)
            if batch and (full > most or (real >= LARGE and full > 1.1 * (real + lengths[at]))):
                yield batch
                batch, real = [], 0
            batch.append(at)
            real += lengths[at]
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
