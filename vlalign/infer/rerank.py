"""Order each query's own candidates by a model, on however many processes, from wherever it was stopped."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlalign.evals.candidates import plain
from vlalign.evals.runs import write_run
from vlalign.files import write_json, write_text
from vlalign.infer.load import load
from vlalign.infer.parts import Parts
from vlalign.infer.pictures import kept, written
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.ops.dist import launched, own_device
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.offline import RerankRecipe
from vlalign.types import BadRow, RecipeError, UserError

TOGETHER = 16  # queries that are kept at once


def rerank(recipe: RerankRecipe, progress: Callable[[int], None] = lambda count: None) -> Path | None:
    """Write `out/{recipe.yaml, run.trec, candidates.jsonl}`; returns `out`, None where others are not done.

    A row that cannot be read is told in `bad.json` with its reason, never scored. Pictures that no file has
    are written into `out/images`. `progress` hears of rows that are done. Raises UserError.
    """
    out, (rank, world) = claim(recipe), launched()
    source: Any = recipe.data.build(recipe.limits)
    if recipe.first_stage not in (None, *source.numbers):
        raise RecipeError(
            f"first_stage: not every candidate has the number '{recipe.first_stage}'; all have "
            f"{', '.join(source.numbers)}"
        )
    with writing(out):
        parts = Parts(out, rank, world)
        todo = parts.todo(len(source))
    if todo:
        model = _model(recipe)
        for start in range(0, len(todo), TOGETHER):
            _score(recipe, source, model, parts, todo[start : start + TOGETHER])
            progress(len(todo[start : start + TOGETHER]))
    found = parts.lines()
    if len(found) < len(source):
        return None  # the last process that ends finds all
    with writing(out):
        _finish(recipe, source, found, out)
    return out


def _model(recipe: RerankRecipe) -> Any:
    model = load(recipe.model, device=own_device())
    if isinstance(model, RerankScorer):
        model.tokens = recipe.tokens
    return model


def _score(recipe: RerankRecipe, source: Any, model: Any, parts: Parts, places: list[int]) -> None:
    """Score some rows, and keep each."""
    rows: dict[int, Any] = {}
    for place in places:
        try:
            rows[place] = source[place]
        except BadRow as error:
            with writing(parts.out):
                parts.add(place, {"bad": error.reason})
    queries = [plain(row["query"]) for row in rows.values()]
    candidates = [[plain(each) for each in row["candidates"]] for row in rows.values()]
    for (place, row), scores in zip(rows.items(), model.score(queries, candidates), strict=True):
        with writing(parts.out):
            parts.add(place, {"id": row["id"], "scores": scores.tolist()})


def _finish(recipe: RerankRecipe, source: Any, found: Mapping[int, Mapping[str, Any]], out: Path) -> None:
    """The run, the rows with the model's number, and the rows that could not be read."""
    run: dict[str, dict[str, float]] = {}
    lines, bad = [], {}
    for place in range(len(source)):
        if "bad" in found[place]:
            bad[place] = found[place]["bad"]
            continue
        row, scores = source[place], found[place]["scores"]
        if (row["id"], len(row["candidates"])) != (found[place]["id"], len(scores)):
            raise UserError(
                f"data: row {place} is '{row['id']}' with {len(row['candidates'])} candidates, and was "
                f"'{found[place]['id']}' with {len(scores)} when it was scored; bring those data back, or "
                "choose another folder with out=FOLDER"
            )
        numbers = {**row["numbers"], recipe.number: scores}
        first = row["numbers"][recipe.first_stage] if recipe.first_stage else [0.0] * len(scores)
        ranked = [a + recipe.weight * b for a, b in zip(first, scores, strict=True)]
        run[row["id"]] = dict(
            zip(row["candidate_ids"], ranked if recipe.first_stage else scores, strict=True)
        )
        query, *candidates = (
            written(kept(each, out / "images")) for each in (row["query"], *row["candidates"])
        )
        told = [
            {"id": id, **each, **{name: values[at] for name, values in numbers.items()}}
            for at, (id, each) in enumerate(zip(row["candidate_ids"], candidates, strict=True))
        ]
        lines.append(json.dumps({"id": row["id"], "query": query, "candidates": told}))
    write_run(out / "run.trec", run, recipe.tag)
    write_text(out / "candidates.jsonl", "".join(f"{line}\n" for line in lines))
    if bad:
        write_json(out / "bad.json", bad)
