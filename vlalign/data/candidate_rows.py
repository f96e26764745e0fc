"""Queries with their candidates, as the lines of a file tell them."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vlalign.data.corpus import Corpus
from vlalign.data.items import described, item, kind, name, number, utf8
from vlalign.data.json_rows import JsonFile, record
from vlalign.data.parquet_rows import ParquetFile
from vlalign.data.query_rows import LABEL, Parsed, QueryRows
from vlalign.types import BadRow, DataError, Item, Licence


class Parse(Protocol):
    """How a format is read; picklable."""

    def __call__(self, told: dict[str, Any], line: str, folder: Path) -> Parsed | None:
        """An object as a row, None where it is not of this set. Raises BadRow.

        `line`: the row's id unless it has one; `folder`: where paths of pictures begin.
        """


class CandidateRows(QueryRows):
    """The good objects of a file, read again whenever they are wanted.

    `numbers`: names that all candidates have; `skipped`: lines by the reason that they are bad; `noted`: how
    many rows are kept though odd, by what is: `no_positive` (no label above 0), and what a format says.
    """

    def __init__(
        self,
        path: Path,
        licence: str,
        positives: int | None = None,
        negatives: int | None = None,
        parse: Parse | None = None,
        *,
        folder: Path | None = None,
        documents: Corpus | None = None,
    ) -> None:
        """`parse`: the form of its lines, else `parsed`; `folder`: of pictures, else that of the file.

        Raises DataError where no line can be used.
        """
        self.path, self.name, self.positives, self.negatives = path, str(path), positives, negatives
        self.parse, self.folder, self.documents = parse or parsed, folder or path.parent, documents
        self.licences: Sequence[Licence] = [Licence(name=path.name, licence=licence, source=str(path))]
        self.file = ParquetFile.of(path) if path.suffix == ".parquet" else JsonFile.of(path)
        skipped: dict[str, list[str]] = defaultdict(list)
        for reason, rows in documents.skipped.items() if documents else ():
            skipped[reason] += rows
        self.noted: Counter[str] = Counter()
        names, seen, others = None, set[str](), 0
        spans, lines = array("q"), array("q")
        for line, span, content in self.file.objects():
            try:
                row = self._parsed(content, line)
                if row is not None and row.id in seen:
                    raise BadRow("duplicate_id", f"another row is called {row.id}")
            except BadRow as error:
                skipped[error.reason].append(f"{path.name}:{line}")
                continue
            if row is None:
                others += 1
                continue
            seen.add(row.id)
            spans.extend(span)
            lines.append(line)
            names = set(row.numbers) if names is None else names & set(row.numbers)
            self.noted.update(row.noted if _has_positive(row) else (*row.noted, "no_positive"))
        self.skipped: Mapping[str, Sequence[str]] = dict(skipped)
        if not lines:
            told = [f"{reason} {len(rows)}" for reason, rows in skipped.items()]
            told += [f"{others} are of other sets"] if others else []
            raise DataError(f"{path}: no line of it can be used ({', '.join(told) or 'it is empty'})")
        places = np.array(spans, np.int64).reshape(-1, 2)
        self.starts, self.sizes = places[:, 0], places[:, 1]
        self.lines, self.numbers = np.array(lines, np.int64), sorted(names or ())

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int) -> Parsed:
        """One of them, read from the file. Raises BadRow."""
        span = int(self.starts[index]), int(self.sizes[index])
        (content,) = self.file.read([span])
        row = self._parsed(content, int(self.lines[index]))
        if row is None:
            raise BadRow("changed_file", f"{self.path} has another row in this place; start again")
        return row

    def _parsed(self, content: bytes, line: int) -> Parsed | None:
        row = self.parse(record(content), f"{self.path.name}:{line}", self.folder)
        if row is not None and not row.candidate_ids:
            raise BadRow("no_candidates", "the query has none")
        if row is not None and self.documents is not None:
            self.documents.check(row.candidate_ids)
        return row


def parsed(told: dict[str, Any], line: str, folder: Path) -> Parsed:
    """A line of the project's own form. Raises BadRow."""
    candidates = told.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(each, dict) for each in candidates):
        raise BadRow("no_candidates", "expected an object with a query and a list of candidates, objects too")
    ids = [name(each.get("id"), str(at)) for at, each in enumerate(candidates)]
    if len(set(ids)) < len(ids):
        raise BadRow(
            "duplicate_candidate",
            f"{len(ids)} candidates share {len(set(ids))} ids; one without is called by its place",
        )
    own = [_numbers(each) for each in candidates]
    names = sorted(set.intersection(*map(set, own))) if own else []
    return Parsed(
        id=name(told.get("id"), line),
        query=_item(told.get("query"), folder),
        candidates=[_item(each, folder) for each in candidates],
        candidate_ids=ids,
        numbers={name: [numbers[name] for numbers in own] for name in names},
    )


def _item(told: Any, folder: Path) -> Item:
    """A string, or an object with text, pictures or both. Raises BadRow."""
    if isinstance(told, str):
        return item(told, None, folder)
    if not isinstance(told, dict):
        raise BadRow("no_query", f"the query: expected a text or an object, got {kind(told)}")
    return described(told, folder)


def _numbers(candidate: Mapping[str, Any]) -> dict[str, float]:
    """By name, 0 for no label. Raises BadRow where one is not finite, or the label is none."""
    told = {name: value for name, value in candidate.items() if isinstance(value, int | float)}
    told |= {LABEL: 0 if candidate.get(LABEL) is None else candidate[LABEL]}
    return {utf8(name): number(value) for name, value in told.items() if name != "id"}


def _has_positive(row: Parsed) -> bool:
    return any(label > 0 for label in row.numbers[LABEL])
