"""What sources of queries with candidates share that read the formats of other tools."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlalign.data.candidate_rows import CandidateRows, Parse
from vlalign.data.corpus import Corpus
from vlalign.data.items import first_places, number, several
from vlalign.data.query_rows import LABEL, Parsed, QuerySpec
from vlalign.types import BadRow, Item, Limits


@dataclass(frozen=True, kw_only=True)
class CandidateFile(QuerySpec):
    """A file of queries."""

    path: str
    licence: str = "not stated"

    @abstractmethod
    def parse(self, told: dict[str, Any], line: str, folder: Path) -> Parsed | None:
        """An object of the file as a row. Raises BadRow."""

    def build(self, limits: Limits = Limits()) -> CandidateRows:
        """Find the good lines; a bad one is skipped and counted. Raises DataError."""
        return self.rows(Path(self.path).expanduser(), self.parse)

    def rows(self, path: Path, parse: Parse, documents: Corpus | None = None) -> CandidateRows:
        """The queries of a file, and the corpus of their candidates where it is another. Raises DataError."""
        how = (self.licence, self.positives, self.negatives, parse)
        return CandidateRows(path, *how, folder=self.folder(path), documents=documents)

    def folder(self, path: Path) -> Path:
        """Where paths of pictures begin."""
        return path.parent


@dataclass(frozen=True, kw_only=True)
class PicturedFile(CandidateFile):
    """With pictures. `images`: the folder that their paths begin in, null for that of the file."""

    images: str | None = None

    def folder(self, path: Path) -> Path:
        """Where paths of pictures begin."""
        return path.parent if self.images is None else Path(self.images).expanduser()


def labelled(
    id: str,
    query: Item,
    right: Sequence[Item | str],
    wrong: Sequence[Item | str],
    scores: Mapping[str, Sequence[float] | None] | None = None,
) -> Parsed:
    """A row of candidates that are right and wrong, or of their ids where a corpus has them.

    Of a candidate that comes again the first stays, so that none that is right is wrong as well. An id is the
    place in both lists. `scores`: numbers of all candidates by name, None where they are not given.
    """
    candidates = [*right, *wrong]
    places = first_places(candidates)
    numbers = {LABEL: [1.0] * len(right) + [0.0] * len(wrong)}
    numbers |= {name: list(told) for name, told in (scores or {}).items() if told is not None}
    found = [candidates[place] for place in places]
    return Parsed(
        id=id,
        query=query,
        candidates=[each for each in found if isinstance(each, Item)],
        candidate_ids=[
            each if isinstance(each, str) else str(place) for place, each in zip(places, found, strict=True)
        ],
        numbers={name: [told[place] for place in places] for name, told in numbers.items()},
        noted=("repeated_candidate",) if len(places) < len(candidates) else (),
    )


def scores_of(right: int, wrong: int, told: tuple[Any, Any], what: str) -> list[float] | None:
    """Of so many right and wrong candidates, None where either list is not given.

    Raises BadRow: `uneven_scores` where a list is not as long as its candidates, `bad_number`.
    """
    lists = [several(each, what) for each in told]
    for count, each in zip((right, wrong), lists, strict=True):
        if each and len(each) != count:
            raise BadRow("uneven_scores", f"{what}: {len(each)} scores of {count} candidates")
    found = [number(score) for each in lists for score in each]
    return found if len(found) == right + wrong else None
