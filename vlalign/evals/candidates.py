"""A source of queries with candidates -> judgements, the first stage's run and a model's."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlalign.types import BadRow, DataError, Item, Sample, Scorer, Source, UserError

TOGETHER = 64  # queries that a model is given at once


class Asked:
    """What `source` asks: `qrels` are its labels, with those of what is right and no candidate where it knows
    of such; `first` are the scores of the number `first_stage`, if any.

    `limit`: only its first so many rows. A row that cannot be read is skipped, and counted in `account`.
    """

    def __init__(self, source: Source, first_stage: str | None = None, limit: int | None = None) -> None:
        """Raises DataError."""
        self.source, self.places, self.bad = source, list[int](), Counter[str]()
        self.qrels, self.first = dict[str, dict[str, int]](), dict[str, dict[str, float]]()
        for place in range(min(len(source), limit or len(source))):
            try:
                row = source[place]
            except BadRow as error:
                self.bad[error.reason] += 1
                continue
            self.places.append(place)
            self.qrels[row["id"]] = _grades(row)
            if first_stage is not None:
                self.first[row["id"]] = _numbers(row, first_stage)
        if len(self.qrels) < len(self.places):
            raise DataError("two queries have one id; give each its own")
        if not self.places:
            found = ", ".join(f"{reason}: {count}" for reason, count in self.bad.items()) or "it is empty"
            raise DataError(f"none of the {len(source)} queries could be read ({found})")

    def scored(self, model: Scorer) -> dict[str, dict[str, float]]:
        """The model's run. Raises UserError for a score that is no number."""
        run: dict[str, dict[str, float]] = {}
        for start in range(0, len(self.places), TOGETHER):
            rows = [self.source[place] for place in self.places[start : start + TOGETHER]]
            candidates = [[plain(each) for each in row["candidates"]] for row in rows]
            for row, scores in zip(
                rows, model.score([plain(row["query"]) for row in rows], candidates), strict=True
            ):
                if not scores.isfinite().all():
                    raise UserError(
                        f"query '{row['id']}': a score is not finite; look at the model's weights"
                    )
                run[row["id"]] = dict(zip(row["candidate_ids"], scores.tolist(), strict=True))
        return run

    @property
    def noted(self) -> dict[str, int]:
        """What is odd about queries that the source kept, if it tells that."""
        return dict(getattr(self.source, "noted", {}))

    def account(self) -> dict[str, Any]:
        """How many queries were used and skipped, by reason, and the licences of the data."""
        skipped = Counter({reason: len(ids) for reason, ids in self.source.skipped.items()}) + self.bad
        return {
            "used": len(self.places),
            "skipped": dict(skipped),
            "converted": {},
            "licences": [asdict(licence) for licence in self.source.licences],
        }


def plain(item: Item) -> Any:
    """A text or the path of a picture where it is no more than that, for what takes nothing else."""
    if not item.images:
        return item.text
    alone = len(item.images) == 1 and not item.text and isinstance(item.images[0], Path)
    return item.images[0] if alone else item


def _numbers(row: Sample, name: str) -> dict[str, float]:
    """A number of each candidate, by its id. Raises DataError."""
    ids, numbers = row["candidate_ids"], row["numbers"]
    if twice := next((id for id, times in Counter[str](ids).items() if times > 1), None):
        raise DataError(f"query '{row['id']}': two candidates are called '{twice}'; give each its own id")
    if name not in numbers:
        has = ", ".join(sorted(numbers))
        raise DataError(
            f"query '{row['id']}': its candidates have no number '{name}', all of them have {has}"
        )
    return dict(zip(ids, map(float, numbers[name]), strict=True))


def _grades(row: Sample) -> dict[str, int]:
    """Raises DataError for a label that is no grade."""
    for candidate, label in (labels := _numbers(row, "label") | dict(row.get("lost", {}))).items():
        if not label.is_integer():
            raise DataError(
                f"query '{row['id']}': the label of candidate '{candidate}' is {label}; a grade is a whole "
                "number, and above 0 for a right one"
            )
    return {candidate: int(label) for candidate, label in labels.items()}
