"""Counts of rows: seen, unreadable, converted. Part of every checkpoint."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vlalign.types import Batch, Source


@dataclass
class Tally:
    """`seen`: rows learned from, by all processes. `bad`: id -> reason. `converted`: id -> what was done."""

    seen: int = 0
    bad: dict[str, str] = field(default_factory=dict)
    converted: dict[str, list[str]] = field(default_factory=dict)

    def add(self, rows: int, chunks: Sequence[Batch]) -> None:
        """Count a step: `rows` of all processes, `chunks` of this one. A bad row counts once."""
        self.seen += rows
        for chunk in chunks:
            for row, reason in chunk["bad"]:
                self.bad.setdefault(row, reason)
            for row, conversion in chunk["converted"]:
                known = self.converted.setdefault(row, [])
                if conversion not in known:
                    known.append(conversion)

    def note(self, bad: Mapping[str, str], converted: Mapping[str, list[str]]) -> None:
        """Count rows that somebody else found."""
        self.bad = {**bad, **self.bad}
        self.converted = {**converted, **self.converted}

    def share(self, gather: Callable[[Any], list[Any]]) -> None:
        """Let every process know every process's rows, in the order of ranks."""
        for bad, converted in gather((self.bad, self.converted)):
            self.note(bad, converted)

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
