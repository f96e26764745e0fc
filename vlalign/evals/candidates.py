"""A source of queries with candidates -> judgements, the first stage's run and a model's."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor

from vlalign.types import BadRow, DataError, Item, Limits, Sample, Scorer, UserError

TOGETHER = 16  # queries that a model is given at once, or pictures from which on it is given them
Row = tuple[int, Sample, list[Item]]  # its place, and its query and candidates with their pictures opened


class Asked:
    """What `source` asks: `qrels` are its labels, with those of what is right and no candidate where it knows
    of such; `first` are the scores of the number `first_stage`, if any.

    `source`: a Source that can open pictures, a `QueryRows`. `limit`: only its first so many rows. A row that
    cannot be read, or a picture of which cannot be opened, is skipped, and counted in `account`.
    """

    def __init__(self, source: Any, first_stage: str | None = None, limit: int | None = None) -> None:
        """Raises DataError."""
        self.source, self.ids, self.bad = source, dict[int, str](), Counter[str]()
        self.qrels, self.first = dict[str, dict[str, int]](), dict[str, dict[str, float]]()
        for place in range(min(len(source), limit or len(source))):
            try:
                row = source[place]
            except BadRow as error:
                self.bad[error.reason] += 1
                continue
            self.ids[place] = row["id"]
            self.qrels[row["id"]] = _grades(row)
            if first_stage is not None:
                self.first[row["id"]] = _numbers(row, first_stage)
        if len(self.qrels) < len(self.ids):
            raise DataError("two queries have one id; give each its own")
        self._refuse_none()

    def scored(self, model: Scorer, limits: Limits) -> dict[str, dict[str, float]]:
        """The model's run. Raises UserError for a score that is no number, DataError where no row is left."""
        run: dict[str, dict[str, float]] = {}
        for place, found in scored(model, self.source, list(self.ids), limits):
            if isinstance(found, BadRow):
                self._leave_out(place, found)
                continue
            row, scores = found
            if not scores.isfinite().all():
                raise UserError(f"query '{row['id']}': a score is not finite; look at the model's weights")
            run[row["id"]] = dict(zip(row["candidate_ids"], scores.tolist(), strict=True))
        self._refuse_none()
        return run

    def _leave_out(self, place: int, error: BadRow) -> None:
        self.bad[error.reason] += 1
        id = self.ids.pop(place)
        del self.qrels[id]
        self.first.pop(id, None)

    def _refuse_none(self) -> None:
        if not self.ids:
            found = ", ".join(f"{reason}: {count}" for reason, count in self.bad.items()) or "it is empty"
            raise DataError(f"none of the {len(self.source)} queries could be read ({found})")

    @property
    def noted(self) -> dict[str, int]:
        """What is odd about queries that the source kept, if it tells that."""
        return dict(getattr(self.source, "noted", {}))

    def account(self) -> dict[str, Any]:
        """How many queries were used and skipped, by reason, and the licences of the data."""
        skipped = Counter({reason: len(ids) for reason, ids in self.source.skipped.items()}) + self.bad
        return {
            "used": len(self.ids),
            "skipped": dict(skipped),
            "converted": {},
            "licences": [asdict(licence) for licence in self.source.licences],
        }


def scored(
    model: Scorer, source: Any, places: Iterable[int], limits: Limits, together: int = TOGETHER
) -> Iterator[tuple[int, BadRow | tuple[Sample, Tensor]]]:
    """Each place with its row and the scores of its candidates [C], or with why it cannot be scored.

    Pictures are opened before a model has them, so that a bad one costs its own row alone, and are held of
    few rows at once. `source`: a `QueryRows`.
    """
    held, pictures = list[Row](), 0
    for place in places:
        try:
            row, items = source.opened(place, limits)
        except BadRow as error:
            yield place, error
            continue
        held.append((place, row, items))
        pictures += sum(len(each.images) for each in items)
        if max(len(held), pictures) >= together:
            yield from _scored(model, held)
            held, pictures = [], 0
    if held:
        yield from _scored(model, held)


def _scored(model: Scorer, held: Sequence[Row]) -> Iterator[tuple[int, tuple[Sample, Tensor]]]:
    queries, candidates = list[Any](), list[list[Any]]()
    for _, _, (query, *rest) in held:
        queries.append(plain(query))
        candidates.append([plain(each) for each in rest])
    for (place, row, _), scores in zip(held, model.score(queries, candidates), strict=True):
        yield place, (row, scores)


def plain(item: Item) -> Any:
    """A text where it is no more than that, for what takes nothing else."""
    return item if item.images else item.text


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
