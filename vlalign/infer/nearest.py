"""The best documents of queries, exactly: by embeddings that faiss searches, or by a Scorer of every pair."""

import json
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vlalign.data.images import opened, with_pictures
from vlalign.evals.candidates import plain
from vlalign.files import replace
from vlalign.infer.mining import Scored, best
from vlalign.infer.pool import Pool, Query
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.recipe.folder import writing
from vlalign.recipe.mining import MineRecipe
from vlalign.threads import ahead
from vlalign.types import BadRow, Item, Limits, UserError

SPARE = 16  # documents that are found beyond those that are needed
BLOCK = 1024  # documents that a scorer is given at once
BLANK = Image.new("RGB", (64, 64))
Answer = tuple[Scored, dict[str, float]]  # the best documents without the positives, and these


class Embedded:
    """A dual encoder over a pool. `bad`: reasons of what cannot be embedded, `document ID` or `query ID`.

    Embeddings are kept in the file `kept`, for another try and for other processes, which wait for the first.
    Scores are inner products in float64, whatever queries are searched together: faiss only says which
    documents can be among the best.
    """

    def __init__(self, model: DualEncoderEmbedder, pool: Pool, recipe: MineRecipe, kept: Path) -> None:
        """Raises UserError."""
        import faiss
        from filelock import FileLock

        self.ids, self.last, self.passed = list(pool.documents), recipe.window[1], _passed(pool, recipe)
        queries = [each for each in pool.queries if isinstance(each, Query)]
        digest = pool.digest()
        with writing(kept.parent):
            alone = FileLock(kept.with_suffix(".lock")).acquire()
        with alone:
            found, self.bad = _kept(kept, digest) or _embed(model, pool.named(), recipe, kept, digest)
        rows = found.numpy()
        own = rows[len(self.ids) :].copy()  # not a view, which would hold the documents' rows
        self.queries = {each.id: row for each, row in zip(queries, own, strict=True)}
        good = [place for place, id in enumerate(self.ids) if f"document {id}" not in self.bad]
        self.ids = [self.ids[place] for place in good]
        if not good:
            raise UserError(f"data: no document can be read, such as: {next(iter(self.bad.items()))}")
        self.places = {id: place for place, id in enumerate(self.ids)}
        self.index = faiss.IndexFlatIP(rows.shape[1])
        self.index.add(np.ascontiguousarray(rows[good]))

    def answers(self, queries: Sequence[Query]) -> Iterator[Answer]:
        """Of each query, in order."""
        rows = np.stack([self.queries[each.id] for each in queries])
        most = max(len(each.positives) for each in queries)
        count = min(self.last + most + len(self.passed) + SPARE, len(self.ids))
        for row, each, near, places in zip(rows, queries, *self.index.search(rows, count), strict=True):
            yield self._answer(row, {id for id in each.positives if id in self.places}, near, places)

    def _answer(self, query: np.ndarray, positives: set[str], near: np.ndarray, places: np.ndarray) -> Answer:
        while True:
            ids = [self.ids[place] for place in places.tolist()]
            ranked = _ranked(self._scores(query, places), ids, positives | self.passed, self.last)
            # What faiss has not returned scores less than its last, but for the rounding of its sums.
            unseen = float(near[-1]) + len(query) * 2.0**-23
            if len(places) == len(self.ids) or len(ranked) == self.last and ranked[-1][0] > unseen:
                break
            near, places = (x[0] for x in self.index.search(query[None], min(2 * len(places), len(self.ids))))
        own = sorted(positives)
        scores = self._scores(query, np.array([self.places[id] for id in own], np.int64))
        return ranked, dict(zip(own, scores.tolist(), strict=True))

    def _scores(self, query: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Each row summed for itself, so that it does not matter which others are asked for."""
        if not len(places):
            return np.zeros(0)
        rows = self.index.reconstruct_batch(places).astype(np.float64)
        return np.asarray((rows * query.astype(np.float64)).sum(1))


class Compared:
    """A Scorer over every document of a pool, for each query. `bad`: as `Embedded` has it."""

    def __init__(self, model: Any, pool: Pool, recipe: MineRecipe) -> None:
        """Raises UserError."""
        model.opening = partial(opened, limits=recipe.limits)
        named = pool.named()
        reasons = ahead(partial(_unreadable, recipe.limits), named.values())
        self.bad = {name: reason for name, reason in zip(named, reasons, strict=True) if reason}
        good = {id: each for id, each in pool.documents.items() if f"document {id}" not in self.bad}
        if not good:
            raise UserError(f"data: no document can be read, such as: {next(iter(self.bad.items()))}")
        self.model, self.last, self.ids = model, recipe.window[1], list(good)
        self.passed = _passed(pool, recipe)
        self.places = {id: place for place, id in enumerate(self.ids)}
        self.items = [plain(each) for each in good.values()]

    def answers(self, queries: Sequence[Query]) -> Iterator[Answer]:
        """Of each query, in order. Raises UserError for a score that is no number."""
        for each in queries:
            blocks = [self.items[start : start + BLOCK] for start in range(0, len(self.items), BLOCK)]
            told = [self.model.score([plain(each.item)], [block])[0] for block in blocks]
            scores = torch.cat(told).double().numpy()
            if not np.isfinite(scores).all():
                raise UserError(f"query '{each.id}': a score is not finite; look at the model's weights")
            own = {id: float(scores[self.places[id]]) for id in each.positives if id in self.places}
            yield _ranked(scores, self.ids, {*own, *self.passed}, self.last), own


def _passed(pool: Pool, recipe: MineRecipe) -> frozenset[str]:
    """Documents that are no query's negatives."""
    return pool.answers if recipe.documents == "corpus" else frozenset()


def _ranked(scores: np.ndarray, ids: Sequence[str], others: Set[str], count: int) -> Scored:
    """The best documents but for others."""
    places = best(scores, ids, count + len(others))
    return [(float(scores[place]), ids[place]) for place in places if ids[place] not in others][:count]


def _unreadable(limits: Limits, item: Item) -> str:
    """Why the pictures of an item cannot be opened, or nothing."""
    try:
        with_pictures(item, limits)
    except BadRow as error:
        return error.reason
    return ""


def embedded(
    model: DualEncoderEmbedder, items: Sequence[Item], fusion: float, limits: Limits
) -> tuple[Tensor, dict[int, str]]:
    """`model.embed`, and a reason for each place whose pictures cannot be read: its row is 0."""
    lost: dict[Path, str] = {}

    def opening(path: Path) -> Any:
        try:
            return opened(path, limits)
        except BadRow as error:
            lost[path] = error.reason
            return BLANK  # where it is seen, there is no row in the end

    model.opening = opening
    rows = model.embed(items, fusion)
    bad = {at: lost[path] for at, each in enumerate(items) for path in each.images if path in lost}
    rows[list(bad)] = 0
    return rows, bad


def _embed(
    model: DualEncoderEmbedder, named: Mapping[str, Item], recipe: MineRecipe, kept: Path, digest: str
) -> tuple[Tensor, dict[str, str]]:
    """Embed everything, and keep it."""
    from safetensors.torch import save_file

    rows, lost = embedded(model, list(named.values()), recipe.fusion, recipe.limits)
    names = list(named)
    bad = {names[place]: reason for place, reason in lost.items()}
    told = {"digest": digest, "bad": json.dumps(bad)}
    with writing(kept.parent):
        replace(kept, lambda beside: save_file({"rows": rows}, beside, told))
    return rows, bad


def _kept(path: Path, digest: str) -> tuple[Tensor, dict[str, str]] | None:
    """What is kept of this very pool."""
    from safetensors import safe_open

    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        told = file.metadata()
        return (file.get_tensor("rows"), json.loads(told["bad"])) if told["digest"] == digest else None
