"""Pairs read beside a right answer and alone: Self-J, Ye and Ng 2024, https://arxiv.org/abs/2409.00935."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlalign.models.prompt import Prompt
from vlalign.models.prompts import Prompts
from vlalign.types import Inputs, Item

PLACES = re.compile(r"\{(query|reference)\}")
DIGITS = "0123456789"  # ratings
BESIDE = "beside_"  # what names of a batch's prompts with a right answer begin with


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a query says beside a right answer, with the places {query} and {reference}."""

    text: str = "{query}\nA right answer: {reference}"

    def __post_init__(self) -> None:
        for place in ("{query}", "{reference}"):
            if self.text.count(place) != 1:
                raise ValueError(f"text must have the place {place} once, got {self.text!r:.80}")

    def beside(self, query: Item, right: Item) -> Item:
        """The query with the answer, whose pictures come after its own."""
        own = {"query": query.text, "reference": right.text}
        pieces = enumerate(PLACES.split(self.text))  # words and places by turns
        text = "".join(own[piece] if at % 2 else piece for at, piece in pieces)
        return Item(text=text, images=query.images + right.images)


class ReferredPrompts:
    """A query's prompts beside a right answer, and the same alone. A right answer is cut nowhere."""

    refers = True  # who draws candidates gives a right one

    def __init__(self, pairs: Prompts, reference: Reference) -> None:
        """Raises UserError where a digit is not one token."""
        self.pairs, self.reference = pairs, reference
        self.digits = [pairs.answer(digit) for digit in DIGITS]

    def read(self, query: Item, candidates: Sequence[Item], right: Item) -> tuple[list[Prompt], list[Prompt]]:
        """Raises BadRow."""
        asked, known, *shown = (self.pairs.look(each) for each in (query, right, *candidates))
        beside, alone = (
            [self.pairs.one(own, each, looks, seen) for each, seen in zip(candidates, shown, strict=True)]
            for own, looks in ((self.reference.beside(query, right), [*asked, *known]), (query, asked))
        )
        return beside, alone

    def join(self, read: Sequence[tuple[list[Prompt], list[Prompt]]]) -> Inputs:
        """Of several queries: the inputs of pairs alone, and by other names those beside a right answer."""
        beside, alone = (self.pairs.join([each[at] for each in read]) for at in (0, 1))
        return {**alone, **{f"{BESIDE}{name}": x for name, x in beside.items()}}


def of_beside(inputs: Inputs) -> Inputs:
    """What `join` gave of prompts beside a right answer, by its own names."""
    return {name.removeprefix(BESIDE): x for name, x in inputs.items() if name.startswith(BESIDE)}
