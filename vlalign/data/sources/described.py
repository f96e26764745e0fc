"""Queries with what pictures and captions of their ids tell: what a query shows, and what is the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from vlalign.data.query_rows import LABEL, Parsed, QueryRows, QuerySpec
from vlalign.registry import SOURCES
from vlalign.specs import SourceSpec
from vlalign.types import BadRow, DataError, Limits, Source

TAKEN = ("id", LABEL, "text", "image", "images")  # what a candidate has beside such numbers


@dataclass(frozen=True, slots=True)
class Known:
    """`values`: of the fields that are compared, by the number that tells it."""

    caption: str
    values: Mapping[str, str]


@SOURCES.register("described")
@dataclass(frozen=True, kw_only=True)
class Described(QuerySpec):
    """Every query of `data`, with what `by`, a source of pictures and captions, knows of its id.

    A query that shows pictures and says nothing says the first caption of its row of `by`, beside them.
    `same`: fields of `by`, by the name of a number, which is 1 for candidates whose row has the query's value
    there, else 0. A row is bad as `unknown_id` where `by` lacks an id that is looked up.
    """

    data: Annotated[SourceSpec, SOURCES]
    by: Annotated[SourceSpec, SOURCES]
    same: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self.data, "reads", "pairs") != self.reads:
            raise ValueError("data must be queries with candidates, as `candidates` reads them, not pairs")
        if getattr(self.by, "reads", "pairs") != "pairs":
            raise ValueError("by must be pictures with captions, and has queries with candidates")
        if taken := [name for name in self.same if name in TAKEN]:
            raise ValueError(
                f"same must not name a number '{taken[0]}', which candidates have already; choose another"
            )

    def build(self, limits: Limits = Limits()) -> "DescribedRows":
        """Build both; nothing is decoded. Raises DataError."""
        return DescribedRows(self, self.data.build(limits), self.by.build(limits))


class DescribedRows(QueryRows):
    """Those of `data`; captions and compared values of all rows of `by` are held in memory."""

    def __init__(self, spec: Described, rows: Any, by: Source) -> None:
        """`rows`: a `QueryRows`. Raises DataError."""
        self.rows, self.same, self.name = rows, spec.same, f"described ({rows.name})"
        self.positives, self.negatives = spec.positives, spec.negatives
        self.skipped, self.noted, self.documents = rows.skipped, rows.noted, rows.documents
        self.licences = list(dict.fromkeys([*rows.licences, *by.licences]))
        if taken := sorted(set(spec.same) & set(rows.numbers)):
            raise DataError(
                f"{self.name}: data has a number '{taken[0]}' already; call that of same otherwise"
            )
        self.numbers = sorted([*rows.numbers, *spec.same])
        self.known: dict[str, Known] = {}
        for index in range(len(by)):
            told = by.fields(index)
            if lacking := [name for name in spec.same.values() if name not in told]:
                raise DataError(
                    f"{self.name}: by has no field '{lacking[0]}' in its row '{told['id']}', which has "
                    f"{', '.join(told)}; name one of these in same"
                )
            if told["id"] in self.known:
                raise DataError(
                    f"{self.name}: two rows of by are called '{told['id']}'; give each its own id"
                )
            values = {number: told[name] for number, name in spec.same.items()}
            self.known[told["id"]] = Known(by.captions(index)[0], values)

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Parsed:
        """One of `data`, and what is known of it. Raises BadRow."""
        row: Parsed = self.rows.row(index)
        if row.query.images and not row.query.text.strip():
            row = replace(row, query=replace(row.query, text=self._of(row.id).caption))
        if not self.same:
            return row
        own, others = self._of(row.id).values, [self._of(id).values for id in row.candidate_ids]
        same = {name: [float(each[name] == own[name]) for each in others] for name in self.same}
        return replace(row, numbers={**row.numbers, **same})

    def captions(self, index: int) -> tuple[str, ...]:
        """The query's text, or the caption that it gets; nothing is decoded. Raises BadRow."""
        (text,) = self.rows.captions(index)
        return (text if text.strip() else self._of(self.fields(index)["id"]).caption,)

    def fields(self, index: int) -> dict[str, str]:
        """Its id, as `data` tells it. Raises BadRow."""
        told: dict[str, str] = self.rows.fields(index)
        return told

    def _of(self, id: str) -> Known:
        """Raises BadRow."""
        if id not in self.known:
            raise BadRow(
                "unknown_id",
                f"by has no row '{id}', a query's or a candidate's id; give it one, or name another source",
            )
        return self.known[id]
