"""Align two sides: a weighted sum of terms over one table of scores, each the mean over directions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Annotated, Literal

import torch
from torch import Tensor

from vlalign.ops.reductions import NEGATIVES
from vlalign.ops.table import Ask, Table
from vlalign.registry import OBJECTIVES, SELECTORS, TARGETS, TASKS, WEIGHTERS, name_of
from vlalign.types import Batch, Context, Embeddings, Loss, Objective, Selector, Side, Targets, Weighter

Direction = Literal["query_to_key", "key_to_query"]
SIDES: Mapping[Direction, Side] = {"query_to_key": "query", "key_to_query": "key"}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective with its weighters; `targets`, `selectors` and `directions` default to the task's.

    `scale` multiplies the term. `weigh: pair` gives a pair the mean weight of its two directions, `direction`
    keeps them apart.
    """

    objective: Annotated[Objective, OBJECTIVES]
    weighters: tuple[Annotated[Weighter, WEIGHTERS], ...] = ()
    scale: float = 1.0
    weigh: Literal["pair", "direction"] = "pair"
    targets: Annotated[Targets, TARGETS] | None = None
    selectors: tuple[Annotated[Selector, SELECTORS], ...] | None = None
    directions: tuple[Direction, ...] | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be > 0 and finite, got {self.scale}")
        named = name_of(type(self.objective))
        for weighter in self.weighters:
            lacks = [name for name in getattr(weighter, "reads", ()) if name not in self.objective.reductions]
            if self.symmetric or lacks:
                why = "has no loss a row" if self.symmetric else f"names no reduction '{lacks[0]}'"
                raise ValueError(
                    f"weighters: {name_of(type(weighter))} cannot weigh the rows of {named}, which {why}"
                )
        if self.directions is not None:
            _check_directions(self.directions)

    @property
    def symmetric(self) -> bool:
        """Whether both directions have one total, so that one is computed."""
        return getattr(self.objective, "symmetric", False)

    def weights(self, losses: Mapping[Side, Tensor], contexts: Mapping[Side, Context]) -> dict[Side, Tensor]:
        """Weights of each direction's losses."""
        weights = {side: torch.ones_like(each) for side, each in losses.items()}
        for side in losses:
            for weighter in self.weighters:
                weights[side] = weights[side] * weighter(losses[side], contexts[side])
        if self.weigh == "direction" or not self.weighters or len(weights) < 2:
            return weights
        return _paired(weights["query"], weights["key"], contexts["query"].batch)


@TASKS.register("align")
@dataclass(frozen=True, kw_only=True)
class Align:
    """Queries against the keys of the whole batch.

    `tile`: queries and keys of the blocks that the table is computed in; null: chosen by the device, on a GPU
    from its free memory. It changes speed and memory, and the loss in the last digits.
    """

    targets: Annotated[Targets, TARGETS]
    terms: tuple[Term, ...]
    selectors: tuple[Annotated[Selector, SELECTORS], ...] = ()
    directions: tuple[Direction, ...] = ("query_to_key", "key_to_query")
    tile: tuple[int, int] | None = None

    coupled = True  # each query meets the keys of the whole step

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms is empty; name at least one objective")
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"tile must be two numbers of rows >= 1, got {list(self.tile)}")
        _check_directions(self.directions)
        for term in self.terms:
            self._check(term)

    @property
    def reads_scale(self) -> bool:
        """Whether any term sees logits, as whole rows do; else the model's scale and bias learn nothing."""
        asked = [term.objective.reductions.values() for term in self.terms]
        return any(not own or any(r.temperature is None for r in own) for own in asked)

    @property
    def reads_fields(self) -> tuple[str, ...]:
        """Fields that the rows must have, for targets and selectors to compare."""
        lenses = [self._ask(term, "query").lens for term in self.terms]
        return tuple(
            dict.fromkeys(name for lens in lenses for name in (*lens.reads("query"), *lens.reads("key")))
        )

    def rows(self, batch: Batch) -> int:
        """Queries of this process."""
        return len(batch["ids"])

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        """Sum over local rows, mean over directions. `parts`: that of each term, before its scale."""
        table = Table(features, batch, self.tile)
        asks = [(term, side) for term in self.terms for side in self._sides(term)]
        answers = iter(table.rows([self._ask(term, side) for term, side in asks]))
        parts: dict[str, Tensor] = {}
        for name, term in self._named().items():
            rows = {side: next(answers) for side in self._sides(term)}
            losses = {side: torch.where(each.valid, term.objective(each), 0) for side, each in rows.items()}
            contexts = {side: Context(batch, each, step, total) for side, each in rows.items()}
            weights = term.weights(losses, contexts)
            parts[name] = torch.cat([losses[side] * weights[side] for side in rows]).sum() / len(rows)
        scaled = [term.scale * part for term, part in zip(self.terms, parts.values(), strict=True)]
        return Loss(torch.stack(scaled).sum(), {name: part.detach() for name, part in parts.items()})

    def _sides(self, term: Term) -> list[Side]:
        sides = [SIDES[direction] for direction in term.directions or self.directions]
        return sides[:1] if term.symmetric else sides

    def _ask(self, term: Term, side: Side) -> Ask:
        return Ask(
            reductions=term.objective.reductions,
            side=side,
            targets=term.targets or self.targets,
            selectors=self._selectors(term),
        )

    def _selectors(self, term: Term) -> tuple[Selector, ...]:
        return self.selectors if term.selectors is None else term.selectors

    def _named(self) -> dict[str, Term]:
        """Terms by their objective's name, numbered when one comes again."""
        named, seen = {}, Counter[str]()
        for term in self.terms:
            name = name_of(type(term.objective))
            seen[name] += 1
            named[name if seen[name] == 1 else f"{name}_{seen[name]}"] = term
        return named

    def _check(self, term: Term) -> None:
        """Refuse what cannot mean anything. Raises ValueError."""
        named, targets = name_of(type(term.objective)), term.targets or self.targets
        over = {reduction.over for reduction in term.objective.reductions.values()}
        if NEGATIVES in over and getattr(targets, "all_positive", False):
            raise ValueError(
                f"terms: {named} needs negatives, and the targets {name_of(type(targets))} make every pair "
                "positive; use info_nce"
            )
        asking = [selector for selector in self._selectors(term) if selector.reductions]
        if term.symmetric and asking:
            raise ValueError(
                f"terms: {named} has one total for both directions, and {name_of(type(asking[0]))} selects "
                "pairs a direction at a time; give the term its own `selectors: []`"
            )


def _paired(query: Tensor, key: Tensor, batch: Batch) -> dict[Side, Tensor]:
    """The mean weight for a query and the key of its own row; a key without a query keeps its own weight."""
    rows, keys = batch["query_fields"]["row"], batch["key_fields"]["row"]
    ordered, order = keys.sort()
    partner = order[torch.searchsorted(ordered, rows).clamp(max=len(keys) - 1)]
    found = keys[partner] == rows
    mean = torch.where(found, (query + key[partner]) / 2, query)
    return {"query": mean, "key": key.index_put((partner[found],), mean[found])}


def _check_directions(directions: tuple[Direction, ...]) -> None:
    if not directions or len(set(directions)) < len(directions):
        raise ValueError(f"directions must name one or both of {', '.join(SIDES)}, got {list(directions)}")
