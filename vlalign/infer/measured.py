"""What the judges of a recipe measured, and measure now where it is missing."""

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from math import isfinite
from pathlib import Path
from typing import Any

from vlalign.data.candidates import right_answer
from vlalign.data.images import with_pictures
from vlalign.files import cache_folder
from vlalign.infer.score_store import ScoreStore, key, said
from vlalign.infer.shown import Shown
from vlalign.recipe.judging import JudgeRecipe
from vlalign.registry import name_of
from vlalign.specs import Judge
from vlalign.types import Item, Sample, UserError

KEPT = "judged.sqlite"


class Measured:
    """`names` of the judges: two of a kind are told apart by a number. `shown`: what some of them are shown,
    which is to be chosen before anything is measured.
    """

    def __init__(self, recipe: JudgeRecipe) -> None:
        """Raises UserError."""
        self.judges: list[Judge] = [each.build() for each in recipe.judges]
        asked = recipe.demonstrations
        self.shown = None if asked is None else Shown(recipe, asked)
        if recipe.calibrate is None and self.judges and (width := self.judges[0].width) > 1:
            raise UserError(
                f"judges: it measures {width} numbers of a pair, which are one score only with calibrate"
            )
        seen, self.names = Counter[str](), list[str]()
        for name in (name_of(type(each)) for each in recipe.judges):
            seen[name] += 1
            self.names.append(f"{name} {seen[name]}" if seen[name] > 1 else name)
        path = cache_folder() / KEPT if recipe.store is None else Path(recipe.store)
        self.store = ScoreStore(path) if self.judges else None
        self.limits, self.known = recipe.limits, recipe.known

    def missing(self, row: Sample) -> bool:
        """Whether anything of a row has yet to be measured."""
        return any(self._todo(judge, row)[1] for judge in self.judges)

    def fill(self, row: Sample, items: Sequence[Item]) -> None:
        """Measure what is missing, and keep each answer as it comes.

        `items`: the query and its candidates, their pictures opened. Raises BadRow, UserError.
        """
        query, *candidates = items
        for name, judge in zip(self.names, self.judges, strict=True):
            keys, places = self._todo(judge, row)
            if not places or self.store is None:
                continue
            more = self._more(judge, row, places)
            for new in judge.measure(query, [candidates[place] for place in places], **more):
                if not all(isfinite(x) for numbers in new.values() for x in numbers):
                    raise UserError(
                        f"judges: what {name} measures of query '{row['id']}' is not finite; look at the "
                        "model's weights"
                    )
                self.store.add({keys[places[at]]: numbers for at, numbers in new.items()})

    def of(self, row: Sample) -> list[list[list[float]]]:
        """The numbers of each candidate, by judge. Raises UserError where they are gone."""
        found = list[list[list[float]]]()
        for judge in self.judges:
            kept = self.store.get(self._keys(judge, row)) if self.store is not None else []
            own = [numbers for numbers in kept if numbers is not None]
            if len(own) < len(row["candidates"]):
                raise UserError(
                    f"store: nothing is kept any more of query '{row['id']}', which was judged: the model, "
                    "a picture, the right answer that is known or the store is another now; bring it back, "
                    "or choose another folder with out=FOLDER"
                )
            found.append(own)
        return found

    def _todo(self, judge: Judge, row: Sample) -> tuple[list[bytes], list[int]]:
        """Keys of all candidates, and places of those that are yet to be measured, one of each content.

        Of a whole list, all of them where one is missing.
        """
        keys = self._keys(judge, row)
        kept = self.store.get(keys) if self.store is not None else []
        first = {own: place for place, own in reversed([*enumerate(keys)])}
        lost = {own for own, numbers in zip(keys, kept, strict=True) if numbers is None}
        if lost and _lists(judge):
            lost = {*keys}
        return keys, [at for at, own in enumerate(keys) if own in lost and first[own] == at]

    def _keys(self, judge: Judge, row: Sample) -> list[bytes]:
        # A picture that is decoded smaller is another.
        digest = f"{judge.digest} {judge.width} {self.limits.draft}"
        if _lists(judge):
            digest += "\0".join(["", *sorted({*map(said, row["candidates"])})])
        if (right := self._right(judge, row)) is not None:
            digest += f"\0{said(right)}"
        shown = self._shown(judge)
        names = shown.names(row) if shown else [""] * len(row["candidates"])
        pairs = zip(names, row["candidates"], strict=True)
        return [key(f"{digest}{own}", row["query"], each) for own, each in pairs]

    def _right(self, judge: Judge, row: Sample) -> Item | None:
        """The answer that is known to be right, for a judge that measures beside one. Raises BadRow."""
        if self.known is None or not getattr(judge, "refers", False):
            return None
        return right_answer(row, self.known)

    def _shown(self, judge: Judge) -> Shown | None:
        return self.shown if getattr(judge, "shows", False) else None

    def _more(self, judge: Judge, row: Sample, places: Sequence[int]) -> dict[str, Any]:
        """What a judge that can be shown something is shown, pictures opened. Raises BadRow."""
        if (right := self._right(judge, row)) is not None:
            return {"right": with_pictures(right, self.limits)}
        if (shown := self._shown(judge)) is None:
            return {}
        opened, told = cache(partial(with_pictures, limits=self.limits)), shown.of(row)
        return {
            "shown": [
                [each._replace(query=opened(each.query), candidate=opened(each.candidate)) for each in own]
                for own in (told[place] for place in places)
            ]
        }


def _lists(judge: Judge) -> bool:
    """Whether a candidate's numbers depend on the others of its query, which are seen together."""
    return getattr(judge, "lists", False)
