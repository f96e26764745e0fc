"""Some rows of a source, and of a row some of its captions."""

from collections.abc import Mapping, Sequence

from vlalign.types import DataError, Sample, Source


class Subset:
    """A Source over another; nothing of a row is held but its number, and its captions where they differ."""

    def __init__(
        self,
        source: Source,
        rows: Sequence[int],
        captions: Mapping[int, tuple[str, ...]],
        skipped: Mapping[str, Sequence[str]],
        *,
        what: str,
    ) -> None:
        """`rows`: numbers in `source`; `captions`: by such a number; `skipped`: of rows left out here.

        `what` names the source in errors. Raises DataError when no row is left.
        """
        self.source, self.rows, self.licences = source, rows, source.licences
        self._captions = captions
        reasons = dict.fromkeys([*source.skipped, *skipped])
        self.skipped: Mapping[str, Sequence[str]] = {
            name: [*source.skipped.get(name, ()), *skipped.get(name, ())] for name in reasons
        }
        if not rows:
            counts = ", ".join(f"{len(ids)} {reason}" for reason, ids in self.skipped.items())
            raise DataError(f"{what} leaves no row of {len(source)}; skipped: {counts or 'none'}")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """One decoded row with the captions that it has here. Raises BadRow."""
        return {**self.source[self.rows[index]], "captions": self.captions(index)}

    def captions(self, index: int) -> tuple[str, ...]:
        """Every caption of a row that it has here; nothing is decoded."""
        row = self.rows[index]
        return self._captions[row] if row in self._captions else self.source.captions(row)

    def fields(self, index: int) -> dict[str, str]:
        """`id` and the other string fields of a row; nothing is decoded."""
        return self.source.fields(self.rows[index])
