"""What a judge is shown before each pair: labelled pairs of other concepts that are like it."""

from collections.abc import Collection, Mapping
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vlalign.data.hashing import hash63
from vlalign.files import replace
from vlalign.infer.calibrate import concepts, parted
from vlalign.infer.pictures import kept
from vlalign.infer.questions import Demonstration
from vlalign.infer.score_store import said
from vlalign.infer.unit_rows import unit_rows
from vlalign.models.layout import located
from vlalign.models.packages import model_folder
from vlalign.recipe.folder import writing
from vlalign.recipe.judging import Demonstrations, JudgeRecipe
from vlalign.supervision.demonstrations import fused, nearest, vote
from vlalign.types import BadRow, Item, Sample, UserError

KEPT = "demonstrations.safetensors"
TOGETHER = 256  # pairs that are searched for at once
NONE = -1  # in place of an id, where fewer are shown


class Pair(NamedTuple):
    """`query`, `candidate`: names of what they say."""

    query: int
    candidate: int
    right: bool
    concept: int
    fold: int


class Chosen(NamedTuple):
    """What is shown beside a pair: ids of pairs, and how far they are from it."""

    ids: list[int]
    distances: list[float]


class Shown:
    """Items and pairs have names by their content, so that one pair in two rows is shown the same.

    What is chosen is kept in `out`, for other processes, which wait for the first, and for another try:
    embeddings may differ in a last digit, and what a judge has measured is known by what it was shown. A pair
    that is new since then, as where a picture can be read now, is chosen for alone.
    """

    def __init__(self, recipe: JudgeRecipe, asked: Demonstrations) -> None:
        """Raises UserError where there is no such model."""
        self.recipe, self.asked = recipe, asked
        located(model_folder(self.asked.model), None)
        self.items, self.pairs = dict[int, Item](), dict[int, Pair]()
        self.chosen: dict[int, Chosen] = {}

    def choose(self, source: Any, out: Path) -> None:
        """For all pairs of a Source that can be read. Raises UserError."""
        from filelock import FileLock

        self._read(source, out)
        path = out / KEPT
        with writing(out):
            alone = FileLock(path.with_suffix(".lock")).acquire()
        with alone:
            self.chosen = _kept(path)
            if new := self.pairs.keys() - self.chosen.keys():
                self.chosen |= self._choose(new)
                with writing(out):
                    _keep(path, self.chosen, self.asked.k)

    def of(self, row: Sample) -> list[list[Demonstration]]:
        """What is shown of each candidate, the most similar last. Raises UserError where it is gone."""
        return [[self._demonstration(id) for id in own] for own, _ in self._found(row)]

    def names(self, row: Sample) -> list[str]:
        """A word of each candidate, another one where anything else is shown; empty where nothing is."""
        found = self._found(row)
        return ["".join(f" {id}{'-+'[self.pairs[id].right]}" for id in own) for own, _ in found]

    def votes(self, row: Sample) -> list[float]:
        """The share of right ones among what is shown of each candidate, by similarity."""
        found = list[float]()
        for own, distances in self._found(row):
            right = torch.tensor([self.pairs[id].right for id in own], dtype=torch.bool)
            found.append(vote(right, torch.tensor(distances, dtype=torch.float64)).item())
        return found

    def account(self) -> dict[str, Any]:
        """How many are shown beside a pair, at the least and on average, and the share of right ones."""
        shown = [self.chosen[id].ids for id in self.pairs]
        right = [self.pairs[id].right for own in shown for id in own if id in self.pairs]
        return {
            "least": min(map(len, shown)),
            "mean": sum(map(len, shown)) / len(shown),
            "right": sum(right) / len(right) if right else None,
        }

    def _demonstration(self, id: int) -> Demonstration:
        pair = self.pairs[id]
        return Demonstration(self.items[pair.query], self.items[pair.candidate], pair.right)

    def _found(self, row: Sample) -> list[Chosen]:
        query = _name(row["query"])
        found = [self.chosen.get(hash63(query, _name(each))) for each in row["candidates"]]
        told = [each for each in found if each is not None]
        if len(told) < len(found) or any(id not in self.pairs for own, _ in told for id in own):
            raise UserError(
                f"data: what is shown beside query '{row['id']}' was chosen when the rows were others; bring "
                "them back, or choose another folder with out=FOLDER"
            )
        return told

    def _read(self, source: Any, out: Path) -> None:
        """Rows that can be read, as items and pairs."""
        names, rights = list[list[int]](), list[list[bool]]()
        for place in range(len(source)):
            try:
                row = source[place]
            except BadRow:  # who judges it tells why
                continue
            items = [row["query"], *row["candidates"]]
            names.append([_name(each) for each in items])
            rights.append([label > 0 for label in row["numbers"][self.recipe.label]])
            for name, each in zip(names[-1], items, strict=True):
                if name not in self.items:
                    self.items[name] = kept(each, out / "images")
        if not names:
            return
        told = zip(names, rights, strict=True)
        concept = concepts([[own[0], *compress(own[1:], right)] for own, right in told])
        parts = self.recipe.calibrate.folds if self.recipe.calibrate is not None else 1
        places = zip(names, rights, concept.tolist(), parted(concept, parts).tolist(), strict=True)
        for (query, *candidates), right, own, fold in places:
            for candidate, label in zip(candidates, right, strict=True):
                id = hash63(query, candidate)
                label |= id in self.pairs and self.pairs[id].right
                self.pairs[id] = Pair(query, candidate, label, own, fold)

    def _choose(self, new: Collection[int]) -> dict[int, Chosen]:
        """For some pairs, among all. Nothing is shown beside one that has a picture that cannot be read."""
        rows, bad = unit_rows(self.asked.model, [*self.items.values()], self.recipe.limits)
        place = {name: at for at, name in enumerate(self.items)}
        query, candidate, right, concept, fold = torch.tensor([*self.pairs.values()]).T
        sides = [torch.tensor([place[name] for name in own.tolist()]) for own in (query, candidate)]
        features = fused([rows[own] for own in sides], [1.0, self.asked.candidate])
        ids, asked = torch.tensor([*self.pairs]), torch.tensor([id in new for id in self.pairs])
        good = ~(bad[sides[0]] | bad[sides[1]])
        found = {id: Chosen([], []) for id in new}
        for part in fold.unique():
            store = good & (fold == part)
            held, labels = features[store], right[store] if self.asked.balanced else None
            for each in concept[store & asked].unique():
                own = store & (concept == each)
                for some in torch.split((own & asked).nonzero()[:, 0], TOGETHER):
                    near = nearest(
                        features[some], held, ids[store], self.asked.k, exclude=ids[own], labels=labels
                    )
                    told = (x.tolist() for x in (ids[some], *near))
                    found |= {id: Chosen(*each) for id, *each in zip(*told, strict=True)}
        return found


def _name(item: Item) -> int:
    return hash63(said(item))


def _keep(path: Path, chosen: Mapping[int, Chosen], k: int) -> None:
    from safetensors.torch import save_file

    told = {
        "pairs": torch.tensor([*chosen]),
        "shown": torch.tensor([[*own, *[NONE] * (k - len(own))] for own, _ in chosen.values()]),
        "distances": torch.tensor([[*far, *[0.0] * (k - len(far))] for _, far in chosen.values()]),
    }
    replace(path, lambda beside: save_file(told, beside))


def _kept(path: Path) -> dict[int, Chosen]:
    from safetensors.torch import load_file

    if not path.exists():
        return {}
    told = {name: x.tolist() for name, x in load_file(path).items()}
    rows = zip(told["pairs"], told["shown"], told["distances"], strict=True)
    found = {id: [each for each in zip(own, far, strict=True) if each[0] != NONE] for id, own, far in rows}
    return {id: Chosen([own for own, _ in each], [far for _, far in each]) for id, each in found.items()}
