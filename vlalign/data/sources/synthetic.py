"""Documents that a model wrote as positives, Askari et al. 2023, https://arxiv.org/abs/2305.02320."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from vlalign.data.bad_rows import name_of
from vlalign.data.generated import Asked, Document, generated, usable, with_negatives
from vlalign.data.hashing import hash63
from vlalign.data.items import normal
from vlalign.data.query_rows import LABEL, HeldRows, QuerySpec
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import BadRow, Licence, Limits


@SOURCES.register("synthetic")
@dataclass(frozen=True, kw_only=True)
class Synthetic(QuerySpec):
    """Queries of `data` with human positives, or with those of the file `documents`, never both.

    `documents`: lines `{"query_id", "query", "document", "generator"}`, as `vlalign synthesize` writes them.
    `rho`: the share of the queries, chosen by `seed`, whose positives are generated; 1: all. A greater one
    takes the same and more. Chosen ones without (`not_generated`), and others without a human one that is a
    text (`no_positive`), are skipped: only where all have both are ratios compared on the same queries.

    `negatives`: so many a query, drawn at random from the positives of others and the same in every epoch.
    A candidate's number `synthetic` is 1 for a generated one; rows' licences name the generators.
    `max_overlap`: generated documents with a greater share of their query's words are left out, so that both
    kinds can be matched (`vlalign.data.overlap`).
    """

    data: Annotated[SourceSpec, SOURCES]
    documents: str
    rho: float = 1.0
    negatives: int = 4
    max_overlap: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.data, "reads", "pairs") != self.reads:
            raise ValueError("data must be queries with candidates, as `candidates` reads them, not pairs")
        for name in ("rho", "max_overlap"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}")

    def build(self, limits: Limits = Limits()) -> HeldRows:
        """Read every query of both. Raises DataError."""
        human: Any = self.data.build(limits)
        skipped = {reason: list(ids) for reason, ids in human.skipped.items()}
        asked = self._asked(human, skipped)
        pool: dict[str, Document] = {}
        for one in (one for each in asked for one in each.right):
            pool.setdefault(normal(one.text), one)
        others = list(pool.values())
        rows = [with_negatives(each, others, self.negatives, self.seed) for each in asked]
        count = Counter(one.generator for each in asked for one in each.right if one.generator)
        own = [
            Licence(name=f"{n} documents by {who}", licence="see the generator", source=self.documents)
            for who, n in count.items()
        ]
        return HeldRows(f"synthetic ({self.documents})", rows, self, [*human.licences, *own], skipped)

    def _asked(self, human: Any, skipped: dict[str, list[str]]) -> list[Asked]:
        made = dict(generated(Path(self.documents).expanduser(), skipped))
        rows = []
        for index in range(len(human)):
            try:
                rows.append(_human(human[index]))
            except BadRow as error:
                skipped.setdefault(error.reason, []).append(name_of(human, index))
        line = sorted((each.id for each in rows), key=lambda id: hash63(self.seed, id))
        chosen, found = set(line[: int(self.rho * len(line) + 0.5)]), []
        for each in rows:
            written = made.pop(each.id, [])
            ours = usable(written, each.query.text, self.max_overlap, skipped)
            if each.id in chosen:
                right = [
                    Document(f"{each.id}/generated/{at}", one.text, one.generator)
                    for at, one in enumerate(ours)
                ]
                each = each._replace(right=right)
            if each.right:
                found.append(each._replace(known=each.known | {normal(one.text) for one in written}))
            else:
                reason = "not_generated" if each.id in chosen else "no_positive"
                skipped.setdefault(reason, []).append(each.id)
        if unknown := [one.line for each in made.values() for one in each]:
            skipped["unknown_query"] = unknown
        return found


def _human(row: Mapping[str, Any]) -> Asked:
    """With the positives that are texts alone."""
    told = zip(row["candidate_ids"], row["candidates"], row["numbers"][LABEL], strict=True)
    right = [(id, each.text) for id, each, label in told if label > 0 and not each.images]
    documents = [Document(f"{row['id']}/{id}", text) for id, text in right]
    return Asked(row["id"], row["query"], documents, {normal(text) for _, text in right})
