"""Runs, {query: {document: score}}, and judgements (qrels), as TREC's files have them.

One rule breaks ties everywhere: score descending, then document descending.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from vlalign.files import replace
from vlalign.types import DataError, UserError

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]  # grades; above 0: relevant
RUN, QRELS = "query Q0 document rank score tag", "query 0 document grade"


def ordered(run: Run) -> dict[str, list[str]]:
    """The documents of each query, the best first."""
    return {query: best_first(scores) for query, scores in run.items()}


def best_first(scores: Mapping[str, float]) -> list[str]:
    """The documents of one query."""
    return sorted(scores, key=lambda document: (scores[document], document), reverse=True)


def completed(run: Run, qrels: Qrels) -> Run:
    """The run over exactly the queries of `qrels`: one that it does not have retrieved nothing."""
    return {query: run.get(query, {}) for query in qrels}


def write_run(path: Path, run: Iterable[tuple[str, Mapping[str, float]]], tag: str = "vlalign") -> None:
    """Write a run whose scores read back exactly, one query after the other.

    Raises UserError for what the format cannot say.
    """

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            for query, scores in run:
                file.writelines(_told(query, scores, tag, path))

    replace(path, write)


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """The scores of a run; its ranks are not looked at. Raises DataError that names the line."""
    run: dict[str, dict[str, float]] = {}
    for place, (query, _, document, _, told, _) in _lines(path, RUN):
        score = _number(float, told, place, "a score must be a finite number")
        if not isfinite(score):
            raise DataError(f"{place}: a score must be a finite number, got '{told}'")
        _put(run, query, document, score, place)
    return run


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Judgements; BEIR's tables too: without the 0, under a line `query-id corpus-id score`.

    Raises DataError that names the line.
    """
    qrels: dict[str, dict[str, int]] = {}
    for place, (query, *_, document, told) in _lines(path, QRELS, fewer=1):
        if told == "score" and not qrels:
            continue
        _put(qrels, query, document, _number(int, told, place, "a grade must be a whole number"), place)
    return qrels


def _told(query: str, scores: Mapping[str, float], tag: str, path: Path) -> Iterator[str]:
    """The lines of a query. Raises UserError."""
    for rank, document in enumerate(best_first(scores), 1):
        score = float(scores[document])
        if not isfinite(score):
            raise UserError(f"{path}: the score of '{document}' for '{query}' is {score}")
        yield f"{_word(query, path)} Q0 {_word(document, path)} {rank} {score!r} {_word(tag, path)}\n"


def _lines(path: Path, form: str, fewer: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Place and words of every line that is not blank, of which `fewer` may be missing. Raises DataError."""
    wanted, found = len(form.split()), False
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if words := line.split():
                    if not wanted - fewer <= len(words) <= wanted:
                        raise DataError(
                            f"{path}:{number}: expected the {wanted} words `{form}`, got {len(words)}: "
                            f"{line.strip()!r:.80}"
                        )
                    found = True
                    yield f"{path}:{number}", words
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected lines `{form}`") from error
    if not found:
        raise DataError(f"{path} is empty; expected lines `{form}`")


def _number(kind: Any, told: str, place: str, rule: str) -> Any:
    try:
        return kind(told)
    except ValueError as error:
        raise DataError(f"{place}: {rule}, got '{told}'") from error


def _put(table: dict[str, dict[str, Any]], query: str, document: str, value: Any, place: str) -> None:
    own = table.setdefault(query, {})
    if document in own:
        raise DataError(f"{place}: document '{document}' stands twice for query '{query}'")
    own[document] = value


def _word(text: str, path: Path) -> str:
    """Raises UserError for what would be several words of a line, or none."""
    if text.split() != [text]:
        raise UserError(
            f"{path}: {text!r:.80} cannot be written, a name in it has no blanks and is not empty"
        )
    return text
