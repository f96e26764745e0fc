"""Counts of rows: seen, unreadable, converted. Part of every checkpoint."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlalign.types import Batch, Source


@dataclass
class Found:
    """Rows that could not be read, id -> reason, or were converted, id -> what was done."""

    bad: dict[str, str] = field(default_factory=dict)
    converted: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Tally(Found):
    """What all processes found. `seen`: rows learned from."""

    seen: int = 0

    def __post_init__(self) -> None:
        self.news = Found()  # by this process, untold to the others

    def add(self, rows: int, chunks: Sequence[Batch]) -> None:
        """Count a step: `rows` of all processes, `chunks` of this one. A bad row counts once."""
        self.seen += rows
        for chunk in chunks:
            found = Found({row: reason for row, reason in chunk["bad"] if row not in self.bad})
            for row, conversion in chunk["converted"]:
                if row not in self.converted:
                    found.converted.setdefault(row, []).append(conversion)
            self.note(found)
            self.news.bad.update(found.bad)
            self.news.converted.update(found.converted)

    def note(self, found: Found) -> None:
        """Count rows that somebody else found."""
        for row, reason in found.bad.items():
            self.bad.setdefault(row, reason)
        for row, conversions in found.converted.items():
            self.converted.setdefault(row, conversions)

    def share(self, gather: Callable[[Any], list[Any]]) -> None:
        """Let every process know what every process found since they last did, in the order of ranks."""
        for found in gather(self.news):
            self.note(found)
        self.news = Found()

    def account(self, source: Source) -> dict[str, Any]:
        """What the report shows: rows used, skipped and converted, by reason, and the licences."""
        skipped = Counter({reason: len(ids) for reason, ids in source.skipped.items()})
        skipped.update(self.bad.values())
        converted = Counter(what for conversions in self.converted.values() for what in conversions)
        return {
            "used": len(source) - len(self.bad),
            "skipped": dict(sorted(skipped.items())),
            "converted": dict(sorted(converted.items())),
            "licences": [asdict(licence) for licence in source.licences],
        }
