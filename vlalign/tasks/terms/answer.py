"""What a table answers a term, and what becomes of it: parts of a loss."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vlalign.ops.weighing import Weighing
from vlalign.tasks.terms.names import head_name
from vlalign.tasks.terms.term import Term
from vlalign.types import Context, Side

Part = tuple[str, float, Tensor]  # name, scale, and sum over local rows


class Answer(NamedTuple):
    """The losses of a term's directions, and what they were made of. `weight`: of the width of the table."""

    name: str
    term: Term
    weight: float
    losses: Mapping[Side, Tensor]
    contexts: Mapping[Side, Context]

    def parts(self) -> Iterator[Part]:
        """The term's own, and for each of its weighters that has one the lesson: mean over directions."""
        weights = self.term.weights(self.losses, self.contexts, self.name)
        yield self.name, self.term.scale, self._mean([x * weights[side] for side, x in self.losses.items()])
        for head, lessons in self.term.lessons(self.losses, self.contexts, self.name).items():
            yield head, 1.0, self._mean(lessons)

    def teaches(self, head: str) -> bool:
        """Whether one of the term's weighters has this head."""
        return any(head_name(self.name, weighter) == head for weighter in self.term.weighters)

    def weighings(self, head: str) -> list[Weighing]:
        """What the weighter of that head has to do with, by direction."""
        return self.term.weighings(head, self.losses, self.contexts, self.name)

    def _mean(self, directions: list[Tensor]) -> Tensor:
        return self.weight * torch.cat(directions).sum() / len(directions)
