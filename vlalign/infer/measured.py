"""What the judges of a recipe measured, and measure now where it is missing."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vlalign.files import cache_folder
from vlalign.infer.score_store import ScoreStore, key
from vlalign.recipe.judging import JudgeRecipe
from vlalign.registry import name_of
from vlalign.specs import Judge
from vlalign.types import Item, Sample, UserError

KEPT = "judged.sqlite"


class Measured:
    """`names` of the judges: two of a kind are told apart by a number."""

    def __init__(self, recipe: JudgeRecipe) -> None:
        """Raises UserError."""
        self.judges: list[Judge] = [each.build() for each in recipe.judges]
        if recipe.calibrate is None and self.judges and (width := self.judges[0].width) > 1:
            raise UserError(
                f"judges: it measures {width} numbers of a pair, which are one score only with calibrate"
            )
        seen, self.names = Counter[str](), list[str]()
        for name in (name_of(type(each)) for each in recipe.judges):
            seen[name] += 1
            self.names.append(f"{name} {seen[name]}" if seen[name] > 1 else name)
        self.store = ScoreStore(Path(recipe.store).expanduser() if recipe.store else cache_folder() / KEPT)

    def missing(self, row: Sample) -> list[list[int]]:
        """Places of candidates that each judge has yet to measure, one of each content. Raises BadRow."""
        found = []
        for judge in self.judges:
            keys = _keys(judge, row)
            kept = self.store.get(keys)
            first = {own: place for place, own in reversed([*enumerate(keys)])}
            found.append([at for at, own in enumerate(keys) if kept[at] is None and first[own] == at])
        return found

    def fill(self, row: Sample, items: Sequence[Item]) -> int:
        """Measure what is missing, and keep each answer as it comes; how many there were.

        `items`: the query and its candidates, their pictures opened. Raises BadRow, UserError.
        """
        query, *candidates = items
        count = 0
        for judge, places in zip(self.judges, self.missing(row), strict=True):
            if not places:
                continue
            keys = _keys(judge, row)
            for new in judge.measure(query, [candidates[place] for place in places]):
                self.store.add({keys[places[at]]: numbers for at, numbers in new.items()})
                count += len(new)
        return count

    def of(self, row: Sample) -> list[list[list[float]]]:
        """The numbers of each candidate, by judge. Raises UserError where they are gone."""
        found = list[list[list[float]]]()
        for judge in self.judges:
            own = [numbers for numbers in self.store.get(_keys(judge, row)) if numbers is not None]
            if len(own) < len(row["candidates"]):
                raise UserError(
                    f"store: {self.store.path} has not what was measured of query '{row['id']}'; bring it "
                    "back, or choose another folder with out=FOLDER"
                )
            found.append(own)
        return found


def _keys(judge: Judge, row: Sample) -> list[bytes]:
    return [key(judge.digest, row["query"], each) for each in row["candidates"]]
