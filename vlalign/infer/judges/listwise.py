"""Which of a query's candidates a language model names, all of them in one prompt, in several orders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from typing import Annotated, Any

import torch
from torch import Tensor

from vlalign.data.hashing import hash63
from vlalign.infer.asked_model import AskedModel
from vlalign.infer.load import picture
from vlalign.infer.score_store import said
from vlalign.models.lists import MOST, Lists
from vlalign.registry import JUDGES, MODELS
from vlalign.specs import ModelSpec
from vlalign.types import BadRow, Item

TOKENS = 4096  # of the lists of one forward, where there are several


@JUDGES.register("listwise")
@dataclass(frozen=True, kw_only=True)
class Listwise:
    """log of a candidate's share, its number's among the numbers: FIRST, Reddy et al. 2024, arXiv:2406.15657.

    `model`: an `llm_reranker` or `mllm_reranker`, trained or as it comes; its `lists` are the prompt, by
    default that of UniME-V2. Models prefer some places of a list: it is asked in so many `orders`, and the
    mean of its shares is taken, where Tang et al. 2023, arXiv:2310.07712, take a central ranking. Orders are
    turns of a shuffle by `seed` and by what candidates say, never by their order in the row: each stands in
    each place equally often where there are as many orders as candidates, the default, or a multiple.
    """

    model: Annotated[ModelSpec, MODELS]
    orders: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.orders is not None and self.orders < 1:
            raise ValueError(f"orders must be >= 1, or null for as many as candidates, got {self.orders}")
        if getattr(self.model, "reference", None) is not None:
            raise ValueError("model must have no reference: it reads pairs beside one, and this reads lists")

    def build(self) -> "ListwiseJudge":
        """Found, not yet loaded. Raises UserError."""
        return ListwiseJudge(self)


class ListwiseJudge(AskedModel):
    """One number a pair, at most 0; it depends on all candidates of the query."""

    width = 1
    lists = True  # what is measured of one is known by all

    def __init__(self, asked: Listwise) -> None:
        super().__init__(asked.model)
        self.asked = asked
        spec: Any = self.spec
        told = spec.lists or Lists()
        self.spec = replace(spec, lists=told)
        self.digest = f"{self.digest} {told} {asked.orders} {asked.seed}"

    def measure(self, query: Item, candidates: Sequence[Item]) -> Iterator[Mapping[int, Sequence[float]]]:
        """All of them together. Raises BadRow for more than there are numbers."""
        if len(candidates) > MOST:
            raise BadRow(
                "long_list",
                f"{len(candidates)} candidates, and a list has {MOST} at most; mine fewer, or keep some",
            )
        order = orders([said(each) for each in candidates], self.asked.orders, self.asked.seed)
        places = self.logits(query, candidates, order).double().log_softmax(-1)
        own = torch.empty_like(places).scatter_(1, torch.tensor(order), places)
        mean = own.logsumexp(0) - log(len(order))
        yield {at: [share] for at, share in enumerate(mean.tolist())}

    def logits(self, query: Item, candidates: Sequence[Item], order: Sequence[Sequence[int]]) -> Tensor:
        """Of the number of each place, in each order, [orders, C] float32 on the CPU. Raises BadRow."""
        model: Any = self.scorer.model
        asked, *items = (
            replace(each, images=tuple(map(picture, each.images))) for each in (query, *candidates)
        )
        seen, *shown = (model.taught.pairs.look(each) for each in (asked, *items))
        read = [
            model.taught.one(asked, [items[at] for at in own], seen, [shown[at] for at in own])
            for own in order
        ]
        some = max(1, TOKENS // max(map(len, read)))
        batches = [[*range(at, min(at + some, len(read)))] for at in range(0, len(read), some)]
        with torch.no_grad():
            last = model.hidden(read, batches, {})
        found: Tensor = last @ model.numbers[: len(items)].float().cpu().T
        return found


def orders(told: Sequence[str], wanted: int | None = None, seed: int = 0) -> list[list[int]]:
    """Which candidate stands in each place, of so many orders, by what candidates say."""
    count = len(told)
    wanted = count if wanted is None else wanted
    found = list[list[int]]()
    for at in range(wanted):
        turn, shift = divmod(at, count) if wanted >= count else (0, at * count // wanted)
        first = sorted(range(count), key=lambda each: hash63(seed, turn, told[each]))
        found.append(first[shift:] + first[:shift])
    return found
