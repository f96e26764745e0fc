"""Triplets out of relations, Vaze et al. 2023, https://arxiv.org/abs/2306.07969 (GeneCIS).

The released code takes a distractor of any subject, of the target's picture too, and gives it to no loss;
here it is told as wrong, and so it shows nowhere the target's subject with the target's object, nor does the
reference. There the search for a concrete triplet goes on for ever.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import fsum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlalign.data.relations import Relation
from vlalign.types import DataError, UserError

UNKNOWN = -1.0  # how concrete a word or a phrase is that the norms do not have


class Triplet(NamedTuple):
    """Pictures of one subject with two objects, and one of the second object with another subject."""

    reference: Relation
    target: Relation
    distractor: Relation

    @property
    def condition(self) -> str:
        """What is true of the target."""
        return f"{self.target.predicate} {self.target.object}"


class Triplets:
    """Draws them. `subjects`: those of so many pictures and two objects, with the count of their pictures."""

    def __init__(self, relations: Sequence[Relation], least_images: int) -> None:
        """Raises UserError where no subject is left."""
        self._by_subject, self._by_object = (_grouped(relations, name) for name in ("subject", "object"))
        counts = {name: len({each.image for each in own}) for name, own in self._by_subject.items()}
        self.subjects = {
            name: counts[name]
            for name, own in self._by_subject.items()
            if counts[name] >= least_images and len({each.object for each in own}) >= 2
        }
        if not self.subjects:
            raise UserError(
                f"no subject of {len(relations)} relations is in {least_images} pictures with two objects; "
                "lower least_images, or give more of them"
            )
        self._names = [*self.subjects]
        self._odds = np.array([*self.subjects.values()]) / sum(self.subjects.values())

    def draw(self, random: np.random.Generator) -> Triplet | None:
        """A subject by its pictures, its reference, another object, and a relation of each of both.

        None where the reference leaves no target, or the target no distractor.
        """
        own = self._by_subject[self._names[random.choice(len(self._names), p=self._odds)]]
        reference = own[random.integers(len(own))]
        others = [x for x in own if x.object != reference.object and x.image != reference.image]
        if not others:
            return None
        known = {each.object for each in own if each.image == reference.image}
        objects = [each for each in dict.fromkeys(each.object for each in others) if each not in known]
        if not objects:
            return None
        wanted = objects[random.integers(len(objects))]
        targets = [each for each in others if each.object == wanted]
        target = targets[random.integers(len(targets))]
        shown = {reference.image, *(each.image for each in targets)}
        wrong = [x for x in self._by_object[wanted] if x.subject != target.subject and x.image not in shown]
        return Triplet(reference, target, wrong[random.integers(len(wrong))]) if wrong else None


def concreteness(triplet: Triplet, norms: Mapping[str, float]) -> float:
    """The mean over the subjects and objects of all three."""
    words = [word.casefold() for each in triplet for word in (each.subject, each.object)]
    return fsum(norms.get(word, UNKNOWN) for word in words) / len(words)


def read_norms(path: Path) -> dict[str, float]:
    """Lines `word<tab>score`. Raises DataError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
        pairs = (line.split("\t") for line in lines if line.strip())
        return {word.strip().casefold(): float(score) for word, score in pairs}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected lines of a word, a tab and a score: {error}") from error


def _grouped(relations: Sequence[Relation], name: str) -> dict[str, list[Relation]]:
    found = defaultdict[str, list[Relation]](list)
    for each in relations:
        found[getattr(each, name)].append(each)
    return dict(found)
