"""What all that was measured of pairs says together, how good that is, and which candidates stay."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlalign.data.hashing import hash63
from vlalign.evals.metrics.judging import Lists, first_places, quality, reciprocals
from vlalign.evals.metrics.paired import paired
from vlalign.infer.calibrate import calibrated, concepts
from vlalign.infer.choosing import Chosen, chosen
from vlalign.infer.score_store import said
from vlalign.recipe.judging import OVERLAP, JudgeRecipe
from vlalign.types import Sample


class Verdict:
    """`add` all rows, then `decide`. `scores` and `chosen` are by the row's place."""

    def __init__(self, recipe: JudgeRecipe, judges: Sequence[str]) -> None:
        self.recipe, self.judges = recipe, judges
        self.places, self.right = list[int](), list[list[bool]]()
        self.same = list[list[str]]()  # what makes two queries one concept, if they share any of it
        self.columns = list[list[list[float]]]()  # of each query, of each candidate, all that was measured
        self.alone: dict[str, list[list[float]]] = {}  # numbers that are a score by themselves
        self.scores: Mapping[int, Sequence[float]] = {}
        self.log_odds = list[list[float]]()  # by query, of a calibrated score
        self.chosen: Mapping[int, Chosen] = {}

    def add(self, place: int, row: Sample, measured: Sequence[Lists], overlap: Sequence[float]) -> None:
        """`measured`: the numbers of each candidate, by judge."""
        right = [label > 0 for label in row["numbers"][self.recipe.label]]
        self.places.append(place)
        self.right.append(right)
        self.same.append(
            [said(row["query"]), *(said(x) for x, own in zip(row["candidates"], right, strict=True) if own)]
        )
        single = {name: own for name, own in zip(self.judges, measured, strict=True) if len(own[0]) == 1}
        alone = {name: [numbers[0] for numbers in own] for name, own in single.items()}
        alone |= {name: row["numbers"][name] for name in self.recipe.numbers} | {OVERLAP: list(overlap)}
        for name, own in alone.items():
            self.alone.setdefault(name, []).append(own)
        named = [row["numbers"][name] for name in self.recipe.numbers]
        self.columns.append(
            [
                [x for own in measured for x in own[at]] + [own[at] for own in named]
                for at in range(len(right))
            ]
        )
        if (oracle := self.recipe.oracle) is not None:
            chances = [hash63(oracle.seed, row["id"], id) / 2**63 for id in row["candidate_ids"]]
            told = [own != (chance < oracle.flip) for chance, own in zip(chances, right, strict=True)]
            self.alone.setdefault("oracle", []).append([float(each) for each in told])

    def decide(self) -> None:
        """Raises UserError."""
        lists = self._lists()
        self.scores = dict(zip(self.places, lists, strict=True))
        if (choice := self.recipe.choose) is not None:
            told = zip(self.places, lists, self.right, strict=True)
            self.chosen = {place: chosen(scores, right, choice) for place, scores, right in told}

    def account(self) -> dict[str, Any]:
        """How good the score and each number alone are, the score's gain over each, and what was treated."""
        lists = [*self.scores.values()]
        asked = [at for at, right in enumerate(self.right) if any(right)]
        found: dict[str, Any] = {
            "queries": len(lists),
            "pairs": sum(map(len, lists)),
            "with_right": len(asked),
        }
        if asked and not all(own for right in self.right for own in right):
            found["score"] = quality(self.log_odds or lists, self.right, bool(self.log_odds))
            found["alone"] = {name: quality(own, self.right) for name, own in self.alone.items()}
            found["gain"] = {name: self._gain(lists, own, asked) for name, own in self.alone.items()}
        if self.chosen:
            found["treated"] = self._treated()
        return found

    def _lists(self) -> list[list[float]]:
        """The score of each candidate, by query."""
        if self.recipe.oracle is not None:
            return self.alone["oracle"]
        if self.recipe.calibrate is None:
            return [[own[0] for own in columns] for columns in self.columns]
        counts = [len(own) for own in self.columns]
        flat = np.array([own for columns in self.columns for own in columns], np.float64)
        right = np.array([own for each in self.right for own in each])
        concept = np.repeat(concepts(self.same), counts)
        told = calibrated(flat, right, concept, self.recipe.calibrate.folds)
        self.log_odds = [own.tolist() for own in np.split(told, np.cumsum(counts)[:-1])]
        return [(1 / (1 + np.exp(-np.array(own)))).tolist() for own in self.log_odds]

    def _gain(self, lists: Lists, other: Lists, asked: Sequence[int]) -> dict[str, float]:
        """In reciprocal rank, paired over queries."""
        right = [self.right[at] for at in asked]
        own, less = (reciprocals(first_places([each[at] for at in asked], right)) for each in (lists, other))
        return paired(own, less)

    def _treated(self) -> dict[str, Any]:
        choice, negatives = self.recipe.choose, sum(not own for right in self.right for own in right)
        suspected = sum(len(each.false) for each in self.chosen.values())
        return {
            "how": choice.treat if choice else None,
            "suspected": suspected,
            "share_of_negatives": suspected / negatives if negatives else None,
            "queries": sum(bool(each.false) for each in self.chosen.values()),
            "stay": sum(len(each.places) for each in self.chosen.values()),
        }
