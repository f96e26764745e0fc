"""How much of a query its documents repeat: easy positives confound comparisons."""

from collections import defaultdict
from math import fsum

from vlalign.data.near_duplicates import WORD
from vlalign.data.query_rows import LABEL, QueryRows


def word_overlap(query: str, document: str) -> float:
    """The share of a query's distinct words that a document has, without capitals; 0 where it has no word."""
    words = set(WORD.findall(query.casefold()))
    return len(words & set(WORD.findall(document.casefold()))) / len(words) if words else 0.0


def mean_overlap(rows: QueryRows, by: str) -> dict[float, float]:
    """Mean word overlap of queries with their positives, by the value of these positives' number `by`.

    Raises BadRow.
    """
    found: dict[float, list[float]] = defaultdict(list)
    for index in range(len(rows)):
        row = rows[index]
        numbers = zip(row["numbers"][LABEL], row["numbers"][by], strict=True)
        for each, (label, value) in zip(row["candidates"], numbers, strict=True):
            if label > 0:
                found[value].append(word_overlap(row["query"].text, each.text))
    return {value: fsum(each) / len(each) for value, each in sorted(found.items())}
