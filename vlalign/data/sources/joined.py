"""Several sources of pictures and captions as one."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

from vlalign.data import bad_rows
from vlalign.registry import SOURCES, name_of
from vlalign.specs import SourceSpec
from vlalign.types import Licence, Limits, Sample, Source


@SOURCES.register("joined")
@dataclass(frozen=True, kw_only=True)
class Joined:
    """The rows of all of `of`, those of the first first.

    Rows have the fields that the first row of every source has. An id that an earlier row has already gets
    the number of its own source: `2/id`.
    """

    of: tuple[Annotated[SourceSpec, SOURCES], ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of is empty; name at least one source")
        for each in self.of:
            if getattr(each, "reads", "pairs") != "pairs":
                raise ValueError(f"of must be pictures with captions, and {name_of(type(each))} has queries")

    def build(self, limits: Limits = Limits()) -> "JoinedRows":
        """Build them all; nothing is decoded. Raises DataError."""
        return JoinedRows([each.build(limits) for each in self.of])


class JoinedRows:
    """A Source over several, each row decoded by its own."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.ends = list(accumulate(len(each) for each in sources))
        self.licences: Sequence[Licence] = list(
            dict.fromkeys(licence for each in sources for licence in each.licences)
        )
        skipped: dict[str, list[str]] = defaultdict(list)
        for each in sources:
            for reason, rows in each.skipped.items():
                skipped[reason] += rows
        self.skipped: Mapping[str, Sequence[str]] = dict(skipped)
        self.shared = set[str].intersection(*(set(each.fields(0)) for each in sources))
        self.renamed: dict[int, str] = {}
        taken: set[str] = set()
        for index in range(len(self)):
            number, place = self._place(index)
            id = bad_rows.name_of(sources[number], place)
            if id in taken:
                while id in taken:
                    id = f"{number + 1}/{id}"
                self.renamed[index] = id
            taken.add(id)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Sample:
        """One decoded row. Raises BadRow."""
        source, place = self._place(index)
        row = {name: x for name, x in self.sources[source][place].items() if self._kept(name, x)}
        return row | {"id": self.renamed.get(index, row["id"])}

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption of a row; nothing is decoded."""
        source, place = self._place(index)
        return self.sources[source].captions(place)

    def fields(self, index: int) -> dict[str, str]:
        """`id` and the other fields that all sources have; nothing is decoded."""
        source, place = self._place(index)
        found = self.sources[source].fields(place)
        own = {name: x for name, x in found.items() if name in self.shared}
        return own | {"id": self.renamed.get(index, found["id"])}

    def _place(self, index: int) -> tuple[int, int]:
        """Which source, and where in it. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        source = bisect_right(self.ends, index)
        return source, index - ([0, *self.ends][source])

    def _kept(self, name: str, value: object) -> bool:
        return name in self.shared or not isinstance(value, str)
