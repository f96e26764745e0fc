"""What is mined: all documents of a recipe, and its queries with their positives among these."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vlalign.data.documents import Documents
from vlalign.data.items import described, normal
from vlalign.data.near_duplicates import picture_digest
from vlalign.infer.pictures import kept
from vlalign.types import BadRow, DataError, Item

Told = list[tuple[str, int, float]]  # id, place and label of candidates
Row = tuple[str, Item, Told, Mapping[str, float]]  # id, query, candidates, labels of what was not retrieved


@dataclass(frozen=True, slots=True)
class Query:
    """`positives`: labels by the id of the document."""

    id: str
    item: Item
    positives: dict[str, float]


@dataclass(frozen=True, slots=True)
class Pool:
    """`documents` by id, in the order that they were met; `queries`: a slug for a row that cannot be read.

    `skipped`: how many lines were left out before, by the reason. `answers`: documents of no corpus.
    """

    documents: dict[str, Item]
    queries: list[Query | str]
    skipped: dict[str, int]
    answers: frozenset[str]

    def named(self) -> dict[str, Item]:
        """All that is scored: `document ID` and `query ID`."""
        found = {f"document {id}": each for id, each in self.documents.items()}
        return found | {f"query {each.id}": each.item for each in self.queries if isinstance(each, Query)}

    def digest(self) -> str:
        """Another one where anything of it is, but for what is inside files of pictures."""
        found = blake2b(digest_size=8)
        for each in (*self.documents.items(), *self.queries):
            found.update(f"{each}\0".encode("utf-8", "surrogatepass"))
        return found.hexdigest()


def gathered(source: Any, corpus: Path | None, pictures: Path) -> Pool:
    """All documents and queries. Pictures that no file has are written into the folder `pictures`.

    A document is what has one id. Where `source` calls two of them by one, its ids hold within a query
    alone, as places in a list do: then what says the same is one document, called as the corpus calls it, or
    else QUERY/ID by the first query that has it. Raises DataError.
    """
    found, names, own = _Found(pictures), dict[str, int](), dict[str, int]()
    file = None if corpus is None else Documents(corpus, "id", partial(described, folder=corpus.parent))
    corpora: list[Any] = [each for each in (file, getattr(source, "documents", None)) if each is not None]
    for id, document in (each for documents in corpora for each in documents):
        found.call(names, id, found.place(document))
    of_corpora = frozenset(names)
    rows, local = list[Row | str](), False
    for index in range(len(source)):
        try:
            row = source[index]
        except BadRow as error:
            rows.append(error.reason)
            continue
        places = map(found.place, row["candidates"])
        told = list(zip(row["candidate_ids"], places, row["numbers"]["label"], strict=True))
        local |= not all([found.call(own, id, place) for id, place, _ in told])
        rows.append((row["id"], kept(row["query"], pictures), told, row.get("lost", {})))
    called = {place: id for id, place in reversed(names.items())}
    if local:
        own = {called.setdefault(at, f"{row[0]}/{id}"): at for row in rows for id, at, _ in _told(row)}
    for id, place in own.items():
        if not found.call(names, id, place):
            raise DataError(
                f"'{id}' is one document of the corpus {corpus or ''} and another one of data; a candidate "
                "must have the id that the corpus gives it, and no other document's"
            )
    pool = Pool(
        documents={id: found.items[place] for id, place in names.items()},
        queries=[_query(row, called if local else {}, names) for row in rows],
        skipped=_counted([source.skipped, *(each.skipped for each in corpora)]),
        answers=frozenset(names) - of_corpora,
    )
    _check_names(pool)
    return pool


def _told(row: Row | str) -> Told:
    return [] if isinstance(row, str) else row[2]


def _query(row: Row | str, called: Mapping[int, str], names: Collection[str]) -> Query | str:
    """`called`: names of documents that are not what the row calls them; `names`: of all documents."""
    if isinstance(row, str):
        return row
    id, query, told, lost = row
    right = {called.get(at, name): label for name, at, label in told if label > 0}
    return Query(id, query, right | {name: y for name, y in lost.items() if y > 0 and name in names})


class _Found:
    """What documents say, each of it once, in `items`."""

    def __init__(self, pictures: Path) -> None:
        self.pictures, self.items, self.places = pictures, list[Item](), dict[Any, int]()

    def place(self, document: Item) -> int:
        """Where it is in `items`."""
        document = kept(document, self.pictures)
        place = self.places.setdefault((normal(document.text), document.images), len(self.items))
        if place == len(self.items):
            self.items.append(document)
        return place

    def call(self, names: dict[str, int], id: str, place: int) -> bool:
        """Give a document a name, unless it is taken; whether nothing else has it."""
        known = names.setdefault(id, place)
        return known == place or _alike(self.items[known], self.items[place])


def _alike(one: Item, other: Item) -> bool:
    """Whether two items say the same, wherever the files of their pictures are, if they can be read."""
    if normal(one.text) != normal(other.text) or len(one.images) != len(other.images):
        return False
    pairs = [(a, b) for a, b in zip(one.images, other.images, strict=True) if a != b]
    digests = [(picture_digest(a), picture_digest(b)) for a, b in pairs]
    return not any(a and b and a != b for a, b in digests)


def _counted(skipped: Iterable[Mapping[str, Iterable[str]]]) -> dict[str, int]:
    """How many names there are by each reason; a source may tell those of its corpus too."""
    names = defaultdict[str, set[str]](set)
    for each in skipped:
        for reason, some in each.items():
            names[reason] |= set(some)
    return {reason: len(some) for reason, some in names.items()}


def _check_names(pool: Pool) -> None:
    """Raises DataError for names that a run cannot hold, before anything is computed."""
    queries = [each.id for each in pool.queries if isinstance(each, Query)]
    if not queries or not pool.documents:
        raise DataError("data: there is no query, or no document, that can be read")
    check_names([(queries[0], pool.documents), *((query, ()) for query in queries[1:])])


def check_names(queries: Iterable[tuple[str, Iterable[str]]]) -> None:
    """Of queries and of documents beside them. Raises DataError for those that a run cannot hold."""
    known = set[str]()
    for query, documents in queries:
        if odd := next((name for name in (query, *documents) if name.split() != [name]), None):
            raise DataError(f"{odd!r:.80} is an id with blanks, which a run cannot hold; give it another")
        if query in known:
            raise DataError("data: two queries have one id; give each its own")
        known.add(query)
