"""Mine hard negatives, or a first stage's candidates, on however many processes, from wherever it stopped."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any, TextIO

from vlalign.data.near_duplicates import likeness
from vlalign.evals.runs import best_first, write_run
from vlalign.files import replace, write_json
from vlalign.infer.load import load
from vlalign.infer.mining import mined
from vlalign.infer.nearest import Compared, Embedded
from vlalign.infer.parts import Lines, Parts
from vlalign.infer.pictures import written
from vlalign.infer.pool import Pool, Query, gathered
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.ops.dist import launched, own_device
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.mining import MineRecipe
from vlalign.types import UserError

TOGETHER = 1024  # queries that are searched at once: with few, faiss multiplies no matrices and is slow
KEPT = "embeddings.safetensors"


def mine(recipe: MineRecipe, progress: Callable[[int], None] = lambda count: None) -> Path | None:
    """Write `out/{recipe.yaml, candidates.jsonl, run.trec, mined.json}`; returns `out`, None where others
    are not done.

    `run.trec` is the model's ranking within the window, with the positives that are not ranked below it.
    What cannot be read is told in `mined.json` with its reason. `progress` hears of rows that are done.
    Raises UserError.
    """
    out, (rank, world) = claim(recipe), launched()
    corpus = None if recipe.corpus is None else Path(recipe.corpus).expanduser()
    source: Any = recipe.data.build(recipe.limits)
    pool = gathered(source, corpus, out / "images")
    with writing(out):
        parts = Parts(out, rank, world)
    digest, todo = pool.digest(), parts.todo(len(pool.queries))
    if todo:
        search = _search(recipe, pool, out)
        for start in range(0, len(todo), TOGETHER):
            for place, told in _mine(recipe, pool, search, todo[start : start + TOGETHER]):
                with writing(out):
                    parts.add(place, {"pool": digest, **told})
                progress(1)
    found = parts.lines()
    if len(found) < len(pool.queries):
        return None  # the last process that ends finds all
    if any(line["pool"] != digest for line in found.values()):
        raise UserError(
            "data: its queries or documents are not those that a part of the rows was mined from; bring them "
            "back, or choose another folder with out=FOLDER"
        )
    with writing(out):
        _finish(recipe, pool, found, out)
    return out


def _search(recipe: MineRecipe, pool: Pool, out: Path) -> Embedded | Compared:
    model = load(recipe.model, device=own_device())
    if isinstance(model, DualEncoderEmbedder):
        return Embedded(model, pool, recipe, out / KEPT)
    return Compared(model, pool, recipe)


def _mine(recipe: MineRecipe, pool: Pool, search: Embedded | Compared, places: list[int]) -> Any:
    """Some rows and what is found of each."""
    good: dict[int, Query] = {}
    unreadable = Counter(reason for name, reason in search.bad.items() if name.startswith("document "))
    for place in places:
        query = pool.queries[place]
        reason = query if isinstance(query, str) else search.bad.get(f"query {query.id}")
        if isinstance(query, str) or reason:
            yield place, {"bad": reason}
        else:
            good[place] = query
    answers = search.answers(list(good.values())) if good else ()
    for (place, query), (ranked, own) in zip(good.items(), answers, strict=True):
        found = mined(ranked, own, pool.documents, partial(_reason, pool, recipe, query), recipe)
        yield place, {"positives": own, **found._asdict(), "unreadable": unreadable}


def _reason(pool: Pool, recipe: MineRecipe, query: Query, id: str) -> str:
    """Why a document must be no negative of a query, or nothing."""
    document = pool.documents[id]
    others = [("positive", pool.documents[each]) for each in query.positives]
    for name, other in (*others, ("query", query.item)):
        if like := likeness(document, other, recipe.near_duplicate):
            return f"{'same_as' if like == 'same' else 'near'}_{name}"
    return ""


@dataclass
class _Account:
    """What there is to know about all rows, gathered while they are written."""

    queries: int = 0
    negatives: int = 0
    few: int = 0
    recalls: list[float] = field(default_factory=list)
    excluded: Counter[str] = field(default_factory=Counter)
    unreadable: dict[str, int] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)


def _finish(recipe: MineRecipe, pool: Pool, found: Lines, out: Path) -> None:
    """The rows, the run, and what there is to know about both."""
    account = _Account()

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            write_run(out / "run.trec", _rows(recipe, pool, found, file, account), recipe.tag)

    replace(out / "candidates.jsonl", write)
    recalls = account.recalls
    write_json(
        out / "mined.json",
        {
            "queries": account.queries,
            "documents": len(pool.documents),
            "unreadable_documents": account.unreadable,
            "negatives": account.negatives,
            "fewer_than_k": account.few,
            "excluded": dict(sorted(account.excluded.items())),
            "without_positive": account.queries - len(recalls),
            "recall": fsum(recalls) / len(recalls) if recalls else None,
            "skipped": pool.skipped,
            "bad": account.bad,
        },
    )
    for path in (out / KEPT, (out / KEPT).with_suffix(".lock")):
        path.unlink(missing_ok=True)


def _rows(
    recipe: MineRecipe, pool: Pool, found: Lines, file: TextIO, account: _Account
) -> Iterator[tuple[str, dict[str, float]]]:
    """What the run has of each row, which is written into `file` with its negatives."""
    for place, query in enumerate(pool.queries):
        told = found[place]
        if isinstance(query, str) or "bad" in told:
            account.bad[place] = told["bad"]
            continue
        right, scores = told["positives"], {id: score for score, id in told["window"]}
        shown = right if recipe.positives == "all" else told["found"]
        own = {id: scores[id] for id in told["negatives"]} | {id: right[id] for id in shown}
        candidates = [
            {"id": id, **written(pool.documents[id]), "label": query.positives.get(id, 0)}
            | {recipe.number: own[id]}
            for id in best_first(own)
        ]
        line = {"id": query.id, "query": written(query.item), "candidates": candidates}
        file.write(json.dumps(line) + "\n")
        account.queries += 1
        account.negatives += len(told["negatives"])
        account.few += len(told["negatives"]) < recipe.k
        account.excluded.update(told["excluded"])
        account.unreadable = told["unreadable"]
        if query.positives:
            account.recalls.append(len(told["found"]) / len(query.positives))
        yield query.id, scores | {id: right[id] for id in told["found"]}
