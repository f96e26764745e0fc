"""What queries are answered from: documents that are found by id."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol

from vlalign.types import BadRow, Item


class Corpus(Protocol):
    """Documents of a file, or of any other kind."""

    @property
    def skipped(self) -> Mapping[str, Sequence[str]]:
        """What is no document, by the reason."""

    def __len__(self) -> int:
        """Documents."""

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        """Every document with its id; one that cannot be read is left out, and counted in `skipped`."""

    def lacks(self, ids: Sequence[str]) -> list[str]:
        """Those that no document has."""

    def check(self, ids: Sequence[str]) -> None:
        """Raises BadRow: `missing_document`."""

    def items(self, ids: Sequence[str]) -> list[Item]:
        """The documents. Raises BadRow."""


class MadeCorpus:
    """Documents that `make` makes of their place in `ids` whenever they are wanted; it may raise BadRow.

    `name`: what errors call it. The first `hidden` of them are found by id alone.
    """

    def __init__(self, name: str, ids: Sequence[str], make: Callable[[int], Item], hidden: int = 0) -> None:
        self.name, self.make, self.hidden = name, make, hidden
        self.places = {id: place for place, id in enumerate(ids)}
        self.skipped: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(self.places) - self.hidden

    def __iter__(self) -> Iterator[tuple[str, Item]]:
        skipped: dict[str, list[str]] = defaultdict(list)
        for id, place in islice(self.places.items(), self.hidden, None):
            try:
                yield id, self.make(place)
            except BadRow as error:
                skipped[error.reason].append(id)
        self.skipped = dict(skipped)

    def lacks(self, ids: Sequence[str]) -> list[str]:
        """Those that no document has."""
        return [id for id in ids if id not in self.places]

    def check(self, ids: Sequence[str]) -> None:
        """Raises BadRow: `missing_document`."""
        if missing := self.lacks(ids):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise BadRow("missing_document", f"{self.name} has no document '{missing[0]}'{more}")

    def items(self, ids: Sequence[str]) -> list[Item]:
        """The documents. Raises BadRow: `missing_document`, or what making one raises."""
        self.check(ids)
        return [self.make(self.places[id]) for id in ids]
