"""Align two sides: a weighted sum of terms over one table of scores, each the mean over directions."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vlalign.ops.ask import Ask
from vlalign.ops.everyone import everyone
from vlalign.ops.table import Table
from vlalign.ops.weighing import Weighing
from vlalign.registry import SELECTORS, TARGETS, TASKS
from vlalign.tasks.terms import (
    SIDES,
    Answer,
    Attributes,
    Direction,
    EmbeddingTerm,
    Part,
    Term,
    Width,
    check_directions,
    check_widths,
    cut,
    head_name,
    named,
    own_extras,
)
from vlalign.types import Batch, Context, Embeddings, Loss, Selector, Side, Targets, Weighter


@TASKS.register("align")
@dataclass(frozen=True, kw_only=True)
class Align:
    """Queries against the keys of the whole batch.

    `embedding_terms`: losses of the embeddings themselves, beside the table's. `matryoshka`: the widths that
    the table's terms are taken at, in place of the whole (Kusupati et al. 2022, arXiv:2205.13147).
    `attributes`: a row has several texts, which become one. `tile`: queries and keys of the blocks that the
    table is computed in; null: chosen by the device, on a GPU from its free memory. It changes speed and
    memory, and the loss in the last digits.
    """

    targets: Annotated[Targets, TARGETS]
    terms: tuple[Term, ...] = ()
    embedding_terms: tuple[EmbeddingTerm, ...] = ()
    selectors: tuple[Annotated[Selector, SELECTORS], ...] = ()
    directions: tuple[Direction, ...] = ("query_to_key", "key_to_query")
    matryoshka: tuple[Width, ...] = ()
    attributes: Attributes | None = None
    tile: tuple[int, int] | None = None

    coupled = True  # each query meets the keys of the whole step

    def __post_init__(self) -> None:
        if not self.terms and not self.embedding_terms:
            raise ValueError("terms is empty; name at least one objective")
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"tile must be two numbers of rows >= 1, got {list(self.tile)}")
        if self.matryoshka:
            check_widths(self.matryoshka, bool(self.terms), bool(self.rescalers))
        if self.attributes is not None and self.momentum:
            raise ValueError("attributes: averaged weights do not read them; leave one of the two out")
        check_directions(self.directions)
        for term in self.terms:
            term.check(term.targets or self.targets, self._selectors(term))

    @property
    def reads_scale(self) -> bool:
        """Whether any term sees logits, as whole rows do; else the model's scale and bias learn nothing."""
        asked = [term.objective.reductions.values() for term in self.terms]
        return any(not own or any(r.temperature is None for r in own) for own in asked) or any(
            getattr(term.objective, "reads_scale", False) for term in self.embedding_terms
        )

    @property
    def reads_fields(self) -> tuple[str, ...]:
        """Fields that the rows must have, for targets, selectors and embedding objectives to compare."""
        lenses = [self._ask(term, "query").lens for term in self.terms]
        read = [name for lens in lenses for name in (*lens.reads("query"), *lens.reads("key"))]
        made = {name for term in self.embedding_terms for name in getattr(term.objective, "makes", ())}
        return tuple(name for name in dict.fromkeys([*read, *self._embedding_fields()]) if name not in made)

    @property
    def least_rows(self) -> int:
        """Of a batch, for every objective to mean something."""
        owners: list[Any] = [term.objective for term in self.terms]
        owners += [term.objective for term in self.embedding_terms]
        return max(getattr(owner, "least_rows", 1) for owner in owners)

    @property
    def texts(self) -> int:
        """That a row is read with."""
        return 1 if self.attributes is None else 1 + self.attributes.most

    @property
    def momentum(self) -> bool:
        """Whether an objective compares with what the averaged weights give."""
        return any(getattr(term.objective, "momentum", False) for term in self.embedding_terms)

    def heads(self, dim: int) -> dict[str, nn.Module]:
        """What the objectives and weighters learn, for embeddings of a width, by the names of `extras`."""
        owners: dict[str, Any] = {
            head_name(name): term.objective for name, term in named(self.embedding_terms).items()
        }
        owners |= self._weighters()
        return {name: owner.head(dim) for name, owner in owners.items() if hasattr(owner, "head")}

    def rows(self, batch: Batch) -> int:
        """Queries of this process."""
        return len(batch["ids"])

    def loss(self, features: Embeddings, batch: Batch, step: int, total: int) -> Loss:
        """Sum over local rows, mean over directions. `parts`: of each term and lesson, before its scale."""
        parts: dict[str, Tensor] = {}
        scaled: list[Tensor] = []
        with torch.autocast(features.query.device.type, enabled=False):
            features, batch = self._prepared(features, batch)
            answers = self._answers(features, batch, step, total)
            for name, scale, part in chain(
                self._of_embeddings(features, batch, step, total), *(each.parts() for each in answers)
            ):
                parts[name] = parts[name] + part if name in parts else part
                scaled.append(scale * part)
        return Loss(torch.stack(scaled).sum(), {name: part.detach() for name, part in parts.items()})

    @property
    def rescalers(self) -> dict[str, Weighter]:
        """Weighters that learn from steps that are tried (`vlalign.train.meta`), by their head's name."""
        return {head: each for head, each in self._weighters().items() if hasattr(each, "rates")}

    def weighings(
        self, head: str, features: Embeddings, batch: Batch, step: int, total: int
    ) -> list[Weighing]:
        """What the weighter of that head has to do with, by direction."""
        with torch.autocast(features.query.device.type, enabled=False):
            answers = self._answers(*self._prepared(features, batch), step, total)
            return next(each.weighings(head) for each in answers if each.teaches(head))

    def _answers(self, features: Embeddings, batch: Batch, step: int, total: int) -> Iterator[Answer]:
        """To each term, from the table of each width; contexts have the whole embeddings."""
        if not self.terms:
            return
        context = Context(batch, None, step, total, features)
        asks = [(term, side) for term in self.terms for side in self._sides(term)]
        for weight, part in cut(features, self.matryoshka):
            table = Table(part, batch, self.tile)
            answers = iter(table.rows([self._ask(term, side, context) for term, side in asks]))
            for name, term in named(self.terms).items():
                rows = {side: next(answers) for side in self._sides(term)}
                losses = {s: torch.where(each.valid, term.objective(each), 0) for s, each in rows.items()}
                contexts = {side: replace(context, rows=each) for side, each in rows.items()}
                yield Answer(name, term, weight, losses, contexts)

    def _of_embeddings(self, features: Embeddings, batch: Batch, step: int, total: int) -> Iterator[Part]:
        """Each term over the embeddings, which sees the rows of every process."""
        if not self.embedding_terms:
            return
        every, shown, shares = everyone(features, batch, self._embedding_fields())
        for name, term in named(self.embedding_terms).items():
            own = own_extras(every, head_name(name))
            losses = term.objective(own, Context(shown, None, step, total, own))
            yield name, term.scale, shares.mine_of(losses).sum()

    def _prepared(self, features: Embeddings, batch: Batch) -> tuple[Embeddings, Batch]:
        """One text a row, and the fields that embedding objectives make of the rows for selectors to read."""
        if self.attributes is not None:
            features = self.attributes.joined(features, batch)
        for name, term in named(self.embedding_terms).items():
            if hasattr(term.objective, "make"):
                made = term.objective.make(own_extras(features, head_name(name)))
                batch = {**batch, **{f"{side}_fields": batch[f"{side}_fields"] | made[side] for side in made}}
        return features, batch

    def _weighters(self) -> dict[str, Weighter]:
        """By the names of the heads that they have or might have."""
        terms = named(self.terms).items()
        return {head_name(name, each): each for name, term in terms for each in term.weighters}

    def _embedding_fields(self) -> list[str]:
        return [name for term in self.embedding_terms for name in getattr(term.objective, "fields", ())]

    def _sides(self, term: Term) -> list[Side]:
        sides = [SIDES[direction] for direction in term.directions or self.directions]
        return sides[:1] if term.symmetric else sides

    def _ask(self, term: Term, side: Side, context: Context | None = None) -> Ask:
        return Ask(
            reductions=term.objective.reductions,
            side=side,
            targets=term.targets or self.targets,
            selectors=self._selectors(term),
            mix=term.mix(context) if context and term.mixers else None,
        )

    def _selectors(self, term: Term) -> tuple[Selector, ...]:
        return self.selectors if term.selectors is None else term.selectors
