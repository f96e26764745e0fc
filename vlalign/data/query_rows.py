"""Queries with their candidates, as steps, evaluators and verbs read them, whatever they come from."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vlalign.data.corpus import Corpus
from vlalign.data.images import with_pictures
from vlalign.threads import ahead
from vlalign.types import DataError, Item, Licence, Limits

LABEL = "label"  # above 0: right for the query


@dataclass(frozen=True, slots=True)
class Parsed:
    """A row. `candidates` are empty where a corpus has them; `numbers` are of all candidates, by name.

    `label` is among these. `noted`: slugs of what is odd about a row that is kept. `lost`: labels of what is
    right and no candidate, by id, where the source knows of it.
    """

    id: str
    query: Item
    candidates: Sequence[Item]
    candidate_ids: Sequence[str]
    numbers: Mapping[str, Sequence[float]]
    noted: tuple[str, ...] = ()
    lost: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class QuerySpec:
    """The recipe's side. `positives`, `negatives`: how many of each a step draws of a query, null for all."""

    positives: int | None = 1
    negatives: int | None = 7

    reads = "candidates"

    def __post_init__(self) -> None:
        for name in ("positives", "negatives"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be >= 0 or null, got {value}")


class QueryRows(ABC):
    """A Source of queries. `documents`: the corpus that candidates are of, None where rows hold their own.

    `name`: what errors call it; `numbers`: names that all candidates have; `skipped`: rows that cannot be
    used, by the reason; `noted`: how many rows are kept though odd, by what is.
    """

    name: str
    licences: Sequence[Licence]
    positives: int | None
    negatives: int | None
    numbers: Sequence[str] = (LABEL,)
    skipped: Mapping[str, Sequence[str]]
    noted: Mapping[str, int]
    documents: Corpus | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Rows that can be used."""

    @abstractmethod
    def row(self, index: int) -> Parsed:
        """One of them. Raises BadRow."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """`id`, `query`, `candidates`, `candidate_ids`, `numbers` of the candidates, and `lost` if any is.

        Raises BadRow.
        """
        row = self.row(index)
        ids = list(row.candidate_ids)
        return {
            "id": row.id,
            "query": row.query,
            "candidates": self.documents.items(ids) if self.documents is not None else list(row.candidates),
            "candidate_ids": ids,
            "numbers": {name: list(values) for name, values in row.numbers.items()},
            **({"lost": dict(row.lost)} if row.lost else {}),
        }

    def opened(self, index: int, limits: Limits) -> tuple[dict[str, Any], list[Item]]:
        """A row, and its query and candidates with their pictures opened, in threads. Raises BadRow."""
        row = self[index]
        items = [row["query"], *row["candidates"]]
        if any(each.images for each in items):
            items = list(ahead(partial(with_pictures, limits=limits), items))
        return row, items

    def captions(self, index: int) -> tuple[str, ...]:
        """The query's text. Raises BadRow."""
        return (self.row(index).query.text,)

    def fields(self, index: int) -> dict[str, str]:
        """Its id. Raises BadRow."""
        return {"id": self.row(index).id}


class HeldRows(QueryRows):
    """Rows that memory holds. Raises DataError where there is none."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Parsed],
        spec: QuerySpec,
        licences: Sequence[Licence],
        skipped: Mapping[str, Sequence[str]],
        documents: Corpus | None = None,
    ) -> None:
        if not rows:
            counts = ", ".join(f"{len(ids)} {reason}" for reason, ids in skipped.items())
            raise DataError(f"{name} has no usable row; skipped: {counts or 'none'}")
        self.name, self.rows, self.licences, self.skipped = name, rows, licences, dict(skipped)
        self.positives, self.negatives, self.documents = spec.positives, spec.negatives, documents
        self.numbers = sorted(set.intersection(*(set(row.numbers) for row in rows)))
        self.noted = Counter(slug for row in rows for slug in row.noted)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Parsed:
        """One of them."""
        return self.rows[index]
