"""A term over the table of scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vlalign.ops.mixing import Mix, mixable
from vlalign.ops.reductions import NEGATIVES
from vlalign.ops.weighing import Weighing
from vlalign.registry import MIXERS, OBJECTIVES, SELECTORS, TARGETS, WEIGHTERS, name_of
from vlalign.tasks.terms.names import head_name, headed
from vlalign.tasks.terms.width import check_scale
from vlalign.types import Batch, Context, Mixer, Objective, Selector, Side, Targets, Weighter

Direction = Literal["query_to_key", "key_to_query"]
SIDES: Mapping[Direction, Side] = {"query_to_key": "query", "key_to_query": "key"}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective over the table with its weighters and mixers.

    `scale` multiplies the term. `weigh: pair` gives a pair the mean weight of its two directions, `direction`
    keeps them apart. `targets`, `selectors` and `directions` default to the task's.
    """

    objective: Annotated[Objective, OBJECTIVES]
    weighters: tuple[Annotated[Weighter, WEIGHTERS], ...] = ()
    mixers: tuple[Annotated[Mixer, MIXERS], ...] = ()
    scale: float = 1.0
    weigh: Literal["pair", "direction"] = "pair"
    targets: Annotated[Targets, TARGETS] | None = None
    selectors: tuple[Annotated[Selector, SELECTORS], ...] | None = None
    directions: tuple[Direction, ...] | None = None

    def __post_init__(self) -> None:
        check_scale("scale", self.scale)
        named = name_of(type(self.objective))
        for weighter in self.weighters:
            if self.symmetric:
                raise ValueError(
                    f"weighters: {name_of(type(weighter))} cannot weigh the rows of {named}, which has no "
                    "loss a row"
                )
            check_reads(self.objective, weighter)
        if self.mixers and (self.symmetric or not mixable(self.objective.reductions)):
            raise ValueError(
                f"mixers: {named} cannot take synthetic negatives, for it does not read its negatives "
                "through a log-sum-exp, a sum, a count or a maximum of each row alone; use info_nce or dcl"
            )
        learning = [name_of(type(weighter)) for weighter in self.weighters if hasattr(weighter, "head")]
        if twice := [name for name in learning if learning.count(name) > 1]:
            raise ValueError(f"weighters: {twice[0]} learns, and is named twice; name it once")
        if self.directions is not None:
            check_directions(self.directions)

    def check(self, targets: Targets, selectors: Sequence[Selector]) -> None:
        """Refuse what cannot mean anything with these. Raises ValueError."""
        called = name_of(type(self.objective))
        if getattr(targets, "own", False) and not any(getattr(each, "own", False) for each in selectors):
            raise ValueError(
                f"terms: the targets {name_of(type(targets))} read numbers of a query's own candidates, and "
                "keys are everybody's; give the term `selectors: [own_candidates]`, or use the task rerank"
            )
        over = {reduction.over for reduction in self.objective.reductions.values()}
        if getattr(targets, "all_positive", False):
            needs = f"{called} needs negatives; use info_nce" if NEGATIVES in over else ""
            needs = "mixers need negatives; leave them out" if self.mixers and not needs else needs
            if needs:
                raise ValueError(
                    f"terms: the targets {name_of(type(targets))} make every pair positive, and {needs}"
                )
        asking = [selector for selector in selectors if selector.reductions]
        if self.symmetric and asking:
            raise ValueError(
                f"terms: {called} has one total for both directions, and {name_of(type(asking[0]))} selects "
                "pairs a direction at a time; give the term its own `selectors: []`"
            )

    @property
    def symmetric(self) -> bool:
        """Whether both directions have one total, so that one is computed."""
        return getattr(self.objective, "symmetric", False)

    def mix(self, context: Context) -> Mix:
        """How the synthetic negatives of all its mixers are made."""

        def make(rows: Tensor, hardest: Tensor) -> Tensor:
            return torch.cat([mixer(rows, hardest[:, : mixer.hardest], context) for mixer in self.mixers], 1)

        return Mix(max(mixer.hardest for mixer in self.mixers), make)

    def weights(
        self, losses: Mapping[Side, Tensor], contexts: Mapping[Side, Context], name: str
    ) -> dict[Side, Tensor]:
        """Weights of each direction's losses. `name`: the term's."""
        weights = {side: torch.ones_like(each) for side, each in losses.items()}
        for side in losses:
            for weighter in self.weighters:
                weights[side] = weights[side] * weighter(
                    losses[side], headed(contexts[side], head_name(name, weighter))
                )
        if self.weigh == "direction" or not self.weighters or len(weights) < 2:
            return weights
        return _paired(weights["query"], weights["key"], contexts["query"].batch)

    def lessons(
        self, losses: Mapping[Side, Tensor], contexts: Mapping[Side, Context], name: str
    ) -> dict[str, list[Tensor]]:
        """What teaches the heads of its weighters, by head: [Q] for each direction."""
        teaching = {head_name(name, each): each for each in self.weighters if hasattr(each, "lesson")}
        return {
            head: [weighter.lesson(losses[side], headed(contexts[side], head)) for side in losses]
            for head, weighter in teaching.items()
        }

    def weighings(
        self, head: str, losses: Mapping[Side, Tensor], contexts: Mapping[Side, Context], name: str
    ) -> list[Weighing]:
        """What that head's weighter makes of each direction, before its weights are made to average one."""
        weighter: Any = next(each for each in self.weighters if head_name(name, each) == head)
        rates = {side: weighter.rates(losses[side], headed(contexts[side], head)) for side in losses}
        if self.weigh == "pair" and len(rates) == 2:
            rates = _paired(rates["query"], rates["key"], contexts["query"].batch)
        return [
            Weighing(losses[side], rates[side], context.rows.valid, context.batch[f"{side}_fields"]["row"])
            for side, context in contexts.items()
            if context.rows is not None
        ]


def check_reads(objective: Objective, weighter: Weighter) -> None:
    """Raises ValueError where a weighter reads a reduction that the objective does not name."""
    for each in getattr(weighter, "reads", ()):
        names = (each,) if isinstance(each, str) else each
        if not objective.reductions.keys() & set(names):
            raise ValueError(
                f"weighters: {name_of(type(weighter))} cannot weigh the rows of {name_of(type(objective))}, "
                f"which names no reduction {' or '.join(repr(name) for name in names)}"
            )


def check_directions(directions: tuple[Direction, ...]) -> None:
    """Raises ValueError when none is named, or one twice."""
    if not directions or len(set(directions)) < len(directions):
        raise ValueError(f"directions must name one or both of {', '.join(SIDES)}, got {list(directions)}")


def _paired(query: Tensor, key: Tensor, batch: Batch) -> dict[Side, Tensor]:
    """The mean weight for a query and the key of its own row; a key without a query keeps its own weight."""
    rows, keys = batch["query_fields"]["row"], batch["key_fields"]["row"]
    ordered, order = keys.sort()
    partner = order[torch.searchsorted(ordered, rows).clamp(max=len(keys) - 1)]
    found = keys[partner] == rows
    mean = torch.where(found, (query + key[partner]) / 2, query)
    return {"query": mean, "key": key.index_put((partner[found],), mean[found])}
