"""Documents that a model wrote for queries, as `vlalign synthesize` and others tell them."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vlalign.data.hashing import hash63
from vlalign.data.items import name, normal, plain
from vlalign.data.json_rows import JsonFile, record
from vlalign.data.overlap import word_overlap
from vlalign.data.query_rows import LABEL, Parsed
from vlalign.types import BadRow, DataError, Item

Skipped = dict[str, list[str]]  # reason -> lines


@dataclass(frozen=True, slots=True)
class Generated:
    """`line`: what it is called where it is skipped; `query`: the text that it was written for."""

    line: str
    query: str
    text: str
    generator: str


def generated(path: Path, skipped: Skipped) -> Mapping[str, list[Generated]]:
    """By query, from lines `{"query_id", "query", "document", "generator"}`; `query` may lack.

    A bad line is told in `skipped`: `no_query_id`, `no_generator`, `empty_document` where nothing was
    written, and what JSON may be instead. Raises DataError where there is no such file.
    """
    found: dict[str, list[Generated]] = defaultdict(list)
    for number, _, content in JsonFile.of(path).objects():
        try:
            told = record(content)
            query, generator = name(told.get("query_id"), ""), name(told.get("generator"), "")
            for missing, value in (("no_query_id", query), ("no_generator", generator)):
                if not value:
                    raise BadRow(missing)
            text = plain(told.get("document")).strip()
            if not text:
                raise BadRow("empty_document")
            one = Generated(f"{path.name}:{number}", plain(told.get("query")), text, generator)
            found[query].append(one)
        except BadRow as error:
            skipped.setdefault(error.reason, []).append(f"{path.name}:{number}")
    return found


def usable(made: list[Generated], query: str, max_overlap: float | None, skipped: Skipped) -> list[Generated]:
    """Those for a query's text that say different things; others are told in `skipped`.

    `other_query`: written for another text; `repeated_document`; `overlap`: more of the query's words are in
    it than `max_overlap`.
    """
    found: dict[str, Generated] = {}
    for one in made:
        if one.query and normal(one.query) != normal(query):
            reason = "other_query"
        elif normal(one.text) in found:
            reason = "repeated_document"
        elif max_overlap is not None and word_overlap(query, one.text) > max_overlap:
            reason = "overlap"
        else:
            found[normal(one.text)] = one
            continue
        skipped.setdefault(reason, []).append(one.line)
    return list(found.values())


class Document(NamedTuple):
    """A positive. `generator`: nothing of a human one."""

    id: str
    text: str
    generator: str = ""


class Asked(NamedTuple):
    """A query with its positives. `known`: every text that is right for it, as `normal` makes it."""

    id: str
    query: Item
    right: Sequence[Document]
    known: set[str]


def with_negatives(asked: Asked, pool: Sequence[Document], count: int, seed: int) -> Parsed:
    """A row with so many documents of others, none of them right for it. Raises DataError.

    `pool`: documents that say different things. The number `synthetic` is 1 for generated ones.
    """
    random_ones = random.Random(hash63(seed, "negatives", asked.id))
    some = random_ones.sample(pool, min(len(pool), count + len(asked.known)))
    wrong = [one for one in some if normal(one.text) not in asked.known][:count]
    if len(wrong) < count:
        raise DataError(
            f"query '{asked.id}': others have {len(wrong)} documents that are not right for it, and "
            f"negatives is {count}; give more queries, or draw fewer"
        )
    both = [*asked.right, *wrong]
    numbers = {
        LABEL: [1.0] * len(asked.right) + [0.0] * count,
        "synthetic": [float(bool(one.generator)) for one in both],
    }
    return Parsed(
        asked.id, asked.query, [Item(text=one.text) for one in both], [one.id for one in both], numbers
    )
