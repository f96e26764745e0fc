"""Judgements and rankings in the text files of TREC: what is right for a query, and what was found for it."""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from vlalign.data.items import number
from vlalign.types import BadRow, DataError

Skipped = dict[str, list[str]]  # reason -> lines that are bad
Line = tuple[str, str, float]  # query, document, label or score


class Ranking(NamedTuple):
    """Documents found for a query, the best first. Ids are one text, a line each, which takes little room."""

    text: str = ""
    scores: Sequence[float] = ()

    @property
    def ids(self) -> list[str]:
        """The documents."""
        return self.text.split("\n") if self.scores else []


def judgements(path: Path) -> tuple[Mapping[str, Mapping[str, float]], Skipped]:
    """Labels by query and document, from lines `query document label` or TREC's `query 0 document label`.

    Columns are parted by tabs, or by any white space where there is no tab; the first line may name them. Of
    a pair that is judged twice the first label stays. Raises DataError where nothing can be used.
    """
    found: dict[str, dict[str, float]] = {}
    skipped: Skipped = defaultdict(list)
    for query, document, label in _lines(path, _judged, skipped):
        if document in found.setdefault(query, {}):
            skipped["duplicate_judgement"].append(f"{path.name}: {query} {document}")
        else:
            found[query][document] = label
    _check(found, path, skipped)
    return found, dict(skipped)


def rankings(path: Path, depth: int | None) -> tuple[Mapping[str, Ranking], Skipped]:
    """By query, from lines `query Q0 document rank score tag`: the `depth` best, None for all.

    Scores decide, the rank that is written does not; of equal ones the greater id comes first, as in TREC's
    own tool. Of a document that comes twice the best stays. Raises DataError where nothing can be used.
    """
    found: dict[str, Ranking] = {}
    skipped: Skipped = defaultdict(list)
    for query, group in groupby(_lines(path, _ranked, skipped), key=lambda line: line[0]):
        old = found.get(query, Ranking())  # where the lines of a query do not stand side by side
        scored = [
            *zip(old.scores, old.ids, strict=True),
            *((score, document) for _, document, score in group),
        ]
        best: dict[str, float] = {}
        for score, document in sorted(scored, reverse=True):
            if document in best:
                skipped["duplicate_document"].append(f"{path.name}: {query} {document}")
            else:
                best[document] = score
        kept = dict(list(best.items())[:depth])
        found[query] = Ranking("\n".join(kept), array("d", kept.values()))
    _check(found, path, skipped)
    return found, dict(skipped)


def _check(found: Mapping[str, object], path: Path, skipped: Skipped) -> None:
    if not found:
        told = ", ".join(f"{reason} {len(lines)}" for reason, lines in skipped.items()) or "it is empty"
        raise DataError(f"{path}: no line of it can be used ({told})")


def _lines(path: Path, read: Callable[[str, bool], Line | None], skipped: Skipped) -> Iterator[Line]:
    """Query, document and number of every good line that is not blank."""
    try:
        with path.open("rb") as file:
            for at, content in enumerate(file, 1):
                try:
                    line = read(_text(content), at == 1)
                except BadRow as error:
                    skipped[error.reason].append(f"{path.name}:{at}")
                    continue
                if line is not None:
                    yield line
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRow("not_utf8", str(error)) from error


def _judged(text: str, first: bool) -> Line | None:
    words = text.split("\t") if "\t" in text.strip() else text.split()
    if len(words) not in (0, 3, 4):
        raise BadRow("bad_judgement", f"expected a query, a document and a label, got {len(words)} columns")
    try:
        return _named(words[0], words[-2], words[-1]) if words else None
    except BadRow as error:
        if first and error.reason == "bad_number":  # names of columns
            return None
        raise


def _ranked(text: str, first: bool) -> Line | None:
    words = text.split(maxsplit=5)
    if len(words) not in (0, 6):
        raise BadRow("bad_rank", f"expected `query Q0 document rank score tag`, got {len(words)} columns")
    return _named(words[0], words[2], words[4]) if words else None


def _named(query: str, document: str, told: str) -> Line:
    query, document = query.strip(), document.strip()
    if not query or not document:
        raise BadRow("no_id", "the id of a query or of a document is empty")
    try:
        return query, document, number(float(told))
    except ValueError as error:
        raise BadRow("bad_number", str(error)) from error
