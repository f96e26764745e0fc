"""Candidates of a few queries for objectives that read whole rows, and what holds for each of these."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tests.unit.ops.worlds import Graded, assert_same, batch, embeddings, logits, losses_of
from vlalign.ops.ask import Ask
from vlalign.ops.groups import GroupRows, Groups
from vlalign.ops.rows import DenseRows
from vlalign.supervision.targets.given import Given
from vlalign.types import Objective, Rows

# Grades with ties, one candidate, none, one grade, a teacher's numbers, a positive and a negative
GRADES = [[2.0, 0.0, 1.0, 1.0, 0.0], [1.0], [], [0.0] * 4, [0.5, -0.25, 0.1], [1.0, 0.0]]
ORDER = torch.randperm(sum(map(len, GRADES)), generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([grade for grades in GRADES for grade in grades]).double()[ORDER]
GROUP = torch.tensor([query for query, grades in enumerate(GRADES) for _ in grades])[ORDER]
SCORES = 2 * torch.randn(len(LABELS), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
QUERY, KEY = [0, 2, 4, 6, 8], range(7)


class Laid(Rows):
    """Rows that are laid out already, whatever stands where there is no candidate."""

    def __init__(self, scores: Tensor, targets: Tensor, mask: Tensor | None = None) -> None:
        self.mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
        self.scores, self.targets, self.valid = scores, targets, self.mask.any(1)

    def __getitem__(self, name: str) -> Tensor:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def dense(self) -> DenseRows:
        return DenseRows(self.scores, self.scores, self.targets, self.mask, self.mask / 2)

    def everyones(self, x: Tensor) -> Tensor:
        return x


def row(objective: Objective, scores: Tensor | list[float], targets: Tensor | list[float]) -> Tensor:
    """The loss of one row."""
    laid = (torch.as_tensor(x, dtype=torch.float64)[None] for x in (scores, targets))
    return objective(Laid(*laid))[0]


def grouped(objective: Objective, scores: Tensor) -> Tensor:
    """Losses of the queries [6], 0 where there is nothing to learn."""
    ask = Ask(reductions=objective.reductions, side="query", targets=Given())
    rows = GroupRows(scores, Groups(GROUP, len(GRADES)), ask, ({}, {"label": LABELS}))
    return torch.where(rows.valid, objective(rows), 0)


def assert_equals_loop(objective: Objective, naive: Callable[[Tensor, Tensor], Tensor]) -> None:
    """`naive`: the loss of one row of scores and targets. In groups, and in both directions of a table."""
    scores = SCORES.clone().requires_grad_()
    own = [query == GROUP for query in range(len(GRADES))]
    reference = torch.stack([naive(scores[each], LABELS[each]) for each in own])
    losses = grouped(objective, scores)
    torch.testing.assert_close(losses, reference)
    slopes = (torch.autograd.grad(each.square().sum(), scores)[0] for each in (losses, reference))
    torch.testing.assert_close(*slopes)
    features, data = embeddings(5, 7), batch(QUERY, KEY)
    targets = Graded().tile({"row": torch.tensor(QUERY)[:, None]}, {"row": torch.arange(7)[None]}).double()
    for side, relevance in (("query", targets), ("key", targets.T)):
        pairs = zip(logits(features, side), relevance, strict=True)
        reference = torch.stack([naive(*each) for each in pairs])
        losses = losses_of(objective, features, data, Graded(), side)
        assert_same(losses.square().sum(), reference.square().sum(), features)


def assert_gradient(objective: Objective) -> None:
    """By finite differences."""
    assert torch.autograd.gradcheck(lambda x: grouped(objective, x), SCORES.clone().requires_grad_())


def assert_near_in_bf16(objective: Objective) -> None:
    """Half scores give the loss of their double, in float32."""
    halves = SCORES.bfloat16()
    mine = grouped(objective, halves)
    assert mine.dtype is torch.float32
    torch.testing.assert_close(mine.double(), grouped(objective, halves.double()), atol=1e-5, rtol=1e-5)
