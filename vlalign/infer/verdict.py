"""What all that was measured of pairs says together, how good that is, and which candidates stay."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlalign.data.hashing import hash63
from vlalign.data.items import normal
from vlalign.evals.metrics.judging import Lists, agreement, gain, quality
from vlalign.infer.abstain import abstained, certain
from vlalign.infer.calibrate import calibrated, concepts
from vlalign.infer.choosing import Chosen, chosen
from vlalign.infer.facets import rated
from vlalign.infer.score_store import said
from vlalign.recipe.judging import OVERLAP, JudgeRecipe
from vlalign.types import Item, Sample

TOGETHER = "baselines"  # all that a judge must beat, in one regression


class Verdict:
    """`add` all rows, then `decide`. `scores` and `chosen` are by the row's place."""

    def __init__(self, recipe: JudgeRecipe, judges: Sequence[str]) -> None:
        self.recipe, self.judges = recipe, judges
        self.ratings = recipe.rasch.ratings if recipe.rasch is not None else {}
        self.rasch = dict[str, Any]()  # what is told of them
        self.places, self.right = list[int](), list[list[bool]]()
        self.known = list[list[bool]]()  # what is labelled, of that what `choose` knows
        self.counted = list[list[bool]]()  # what tells of a judge: not what is known, or says the query
        self.same = list[list[str]]()  # what makes two queries one concept, if they share any of it
        self.columns = list[list[list[float]]]()  # of each query, of each candidate, all that is not rated
        self.alone: dict[str, list[list[float]]] = {}  # numbers that are a score by themselves
        self.baselines = list[str]()
        self.scores: Mapping[int, Sequence[float]] = {}
        self.log_odds = list[list[float]]()  # by query, of a calibrated score
        self.certain: Mapping[int, Sequence[bool]] = {}  # by place as scores are: whose score counts
        self.chosen: Mapping[int, Chosen] = {}
        self.orders = list[list[int]]()  # by query, whose score each candidate gets

    def add(
        self, place: int, row: Sample, measured: Sequence[Lists], beside: Mapping[str, list[float]]
    ) -> None:
        """`measured`: the numbers of each candidate, by judge. `beside`: what these are compared with."""
        right = [label > 0 for label in row["numbers"][self.recipe.label]]
        self.places.append(place)
        self.right.append(right)
        known = self.recipe.known
        kept = [known is not None and x > 0 for x in row["numbers"][known or self.recipe.label]]
        self.known.append(kept if known is not None else right)
        pairs = zip(row["candidates"], kept, strict=True)
        self.counted.append([not own and not _alike(row["query"], each) for each, own in pairs])
        self.same.append(_concept(row, right))
        self.orders.append(_order(row, kept, self.recipe.permute))
        single = {name: own for name, own in zip(self.judges, measured, strict=True) if len(own[0]) == 1}
        alone = {name: [numbers[0] for numbers in own] for name, own in single.items()}
        alone |= {name: row["numbers"][name] for name in self.recipe.numbers} | dict(beside)
        self.baselines = [*self.recipe.numbers, *beside]
        for name, own in alone.items():
            self.alone.setdefault(name, []).append(own)
        several = [own for name, own in zip(self.judges, measured, strict=True) if name not in self.ratings]
        named = [row["numbers"][name] for name in self.recipe.numbers if name not in self.ratings]
        self.columns.append(
            [[x for own in several for x in own[at]] + [own[at] for own in named] for at in range(len(right))]
        )
        if (oracle := self.recipe.oracle) is not None:
            chances = [hash63(oracle.seed, row["id"], id) / 2**63 for id in row["candidate_ids"]]
            flips = [x < oracle.flip and not own for x, own in zip(chances, kept, strict=True)]
            told = [own != flip for own, flip in zip(right, flips, strict=True)]
            self.alone.setdefault("oracle", []).append([float(each) for each in told])

    def decide(self) -> None:
        """Raises UserError."""
        lists = self._dealt(self._lists())
        self.log_odds = self._dealt(self.log_odds)
        self.scores = dict(zip(self.places, lists, strict=True))
        judged = certain(lists, self.counted, self.recipe.abstain)
        self.certain = dict(zip(self.places, judged, strict=True))
        if (choice := self.recipe.choose) is not None:
            told = zip(self.places, lists, self.known, judged, strict=True)
            self.chosen = {place: chosen(scores, known, choice, sure) for place, scores, known, sure in told}

    def account(self) -> dict[str, Any]:
        """How good the score and each number alone are, the score's gain over each, whether it beats every
        baseline, what was left unjudged, what raters are like, and what was treated.
        """
        lists, right = [*self.scores.values()], self._counted(self.right)
        asked = [at for at, own in enumerate(right) if any(own)]
        found: dict[str, Any] = {
            "queries": len(lists),
            "pairs": sum(map(len, lists)),
            "with_right": sum(map(any, self.right)),
            "counted": sum(each for own in self.counted for each in own),
        }
        if asked and not all(own for each in right for own in each):
            alone = {name: self._counted(own) for name, own in self.alone.items()}
            own = self._counted(self.log_odds or lists)
            found["score"] = quality(own, right, bool(self.log_odds))
            found["alone"] = {name: quality(each, right) for name, each in alone.items()}
            concept = concepts(self.same)
            found["gain"] = {name: gain(own, each, right, asked, concept) for name, each in alone.items()}
            found["agreement"] = agreement({self.recipe.number: own, **alone})
            found["baselines"] = self.baselines
            gains = [found["gain"][name] for name in self.baselines]
            found["informative"] = all(each.get("low", 0.0) > 0 for each in gains)
            if self.recipe.abstain is not None:
                judged = [*self.certain.values()]
                found["abstained"] = abstained(lists, self.right, self.counted, judged)
        if self.rasch:
            found["rasch"] = self.rasch
        if self.chosen:
            found["treated"] = self._treated()
        return found

    def _dealt(self, lists: Sequence[Sequence[float]]) -> list[list[float]]:
        pairs = zip(lists, self.orders, strict=True) if lists else ()
        return [[own[at] for at in order] for own, order in pairs]

    def _counted(self, lists: Sequence[Sequence[Any]]) -> list[list[Any]]:
        pairs = zip(lists, self.counted, strict=True)
        return [[x for x, counts in zip(own, each, strict=True) if counts] for own, each in pairs]

    def _lists(self) -> list[list[float]]:
        """The score of each candidate, by query."""
        if self.recipe.oracle is not None:
            return self.alone["oracle"]
        measured = self.columns
        if self.recipe.rasch is not None:
            ability, self.rasch = rated(self.recipe.rasch, self.alone)
            measured = [
                [[first, *more] for first, more in zip(*both, strict=True)]
                for both in zip(ability, measured, strict=True)
            ]
        if self.recipe.calibrate is None:
            return [[own[0] for own in columns] for columns in measured]
        self.log_odds = self._calibrated(measured, self.recipe.calibrate.folds)
        if any(not name.startswith(OVERLAP) for name in self.judges):
            every = zip(*(self.alone[name] for name in self.baselines), strict=True)
            columns = [[list(own) for own in zip(*each, strict=True)] for each in every]
            self.alone[TOGETHER] = self._calibrated(columns, self.recipe.calibrate.folds)
            self.baselines.append(TOGETHER)
        chances = [1 / (1 + np.exp(-np.array(own))) for own in self.log_odds]
        sure = self.known if self.recipe.known is not None else [[False] * len(own) for own in chances]
        return [np.where(known, 1.0, own).tolist() for own, known in zip(chances, sure, strict=True)]

    def _calibrated(self, columns: Sequence[Sequence[Sequence[float]]], folds: int) -> list[list[float]]:
        """Log-odds of each candidate, by query."""
        counts = [len(own) for own in columns]
        flat = np.array([own for each in columns for own in each], np.float64)
        right = np.array([own for each in self.right for own in each])
        learns = np.array([own for each in self.counted for own in each])
        told = calibrated(flat, right, np.repeat(concepts(self.same), counts), folds, learns)
        return [own.tolist() for own in np.split(told, np.cumsum(counts)[:-1])]

    def _treated(self) -> dict[str, Any]:
        """With `known` also how many suspects are right, and how many of what is right and not known."""
        choice, negatives = self.recipe.choose, sum(not own for known in self.known for own in known)
        suspected = sum(len(each.false) for each in self.chosen.values())
        told = {
            "how": choice.treat if choice else None,
            "suspected": suspected,
            "share_of_negatives": suspected / negatives if negatives else None,
            "queries": sum(bool(each.false) for each in self.chosen.values()),
            "stay": sum(len(each.places) for each in self.chosen.values()),
        }
        if self.recipe.known is None:
            return told
        both = [*zip(self.right, self.known, self.counted, self.chosen.values(), strict=True)]
        missed = sum(a and not b and c for *own, _ in both for a, b, c in zip(*own, strict=True))
        suspects = [own[at] for own, _, counts, each in both for at in each.false if counts[at]]
        found, suspected = sum(suspects), len(suspects)
        told["precision"] = found / suspected if suspected else None
        told["recall"] = found / missed if missed else None
        return told


def _alike(query: Item, candidate: Item) -> bool:
    """Whether they say the same words; no judge is needed for that."""
    return not candidate.images and bool(query.text.strip()) and normal(query.text) == normal(candidate.text)


def _concept(row: Sample, right: Sequence[bool]) -> list[str]:
    """What makes two queries one concept, if they share any: what they ask, and what is right for them."""
    asked = [row["query"], *([Item(text=normal(row["query"].text))] if row["query"].text.strip() else [])]
    return [*map(said, asked), *(said(x) for x, own in zip(row["candidates"], right, strict=True) if own)]


def _order(row: Sample, kept: Sequence[bool], seed: int | None) -> list[int]:
    """Whose score each candidate gets: its own, or by `seed` another's, but for what is `kept`."""
    order = [*range(len(kept))]
    if seed is None:
        return order
    free = [at for at in order if not kept[at]]
    dealt = sorted(free, key=lambda at: hash63(seed, "permute", row["id"], row["candidate_ids"][at]))
    for at, other in zip(free, dealt, strict=True):
        order[at] = other
    return order
