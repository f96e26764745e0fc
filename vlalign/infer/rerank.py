"""Order each query's own candidates by a model, on however many processes, from wherever it was stopped."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from vlalign.evals.candidates import scored
from vlalign.evals.runs import write_run
from vlalign.files import replace, write_json
from vlalign.infer.load import load
from vlalign.infer.parts import Lines, Parts
from vlalign.infer.pool import check_names
from vlalign.infer.rows import check_same, line, names, seal
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.ops.dist import launched, own_device
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.offline import RerankRecipe
from vlalign.types import BadRow, RecipeError, Sample


def rerank(recipe: RerankRecipe, progress: Callable[[int], None] = lambda count: None) -> Path | None:
    """Write `out/{recipe.yaml, run.trec, candidates.jsonl}`; returns `out`, None where others are not done.

    A row that cannot be read, or a picture of which cannot be opened, is told in `bad.json` with its reason,
    never scored. Pictures that no file has are written into `out/images`. `progress` hears of rows that are
    done. Raises UserError.
    """
    out, (rank, world) = claim(recipe), launched()
    source: Any = recipe.data.build(recipe.limits)
    if recipe.first_stage not in (None, *source.numbers):
        raise RecipeError(
            f"first_stage: not every candidate has the number '{recipe.first_stage}'; all have "
            f"{', '.join(source.numbers)}"
        )
    check_names(names(source))
    with writing(out):
        parts = Parts(out, rank, world)
        todo = parts.todo(len(source))
    if todo:
        for place, found in scored(_model(recipe), source, todo, recipe.limits):
            with writing(out):
                parts.add(place, {"bad": found.reason} if isinstance(found, BadRow) else _told(*found))
            progress(1)
    lines = parts.lines()
    if any(place not in lines for place in range(len(source))):
        return None  # the last process that ends finds all
    with writing(out):
        _finish(recipe, source, lines, out)
    return out


def _model(recipe: RerankRecipe) -> Any:
    model = load(recipe.model, device=own_device())
    if isinstance(model, RerankScorer):
        model.tokens = recipe.tokens
    return model


def _told(row: Sample, scores: Any) -> dict[str, Any]:
    return {**seal(row), "scores": scores.tolist()}


def _finish(recipe: RerankRecipe, source: Any, found: Lines, out: Path) -> None:
    """The run, the rows with the model's number, and the rows that could not be scored."""
    bad: dict[int, str] = {}

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            write_run(out / "run.trec", _rows(recipe, source, found, file, bad), recipe.tag)

    replace(out / "candidates.jsonl", write)
    if bad:
        write_json(out / "bad.json", bad)


def _rows(
    recipe: RerankRecipe, source: Any, found: Lines, file: TextIO, bad: dict[int, str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """What the run has of each row, which is written into `file`; bad ones are put into `bad`."""
    for place in range(len(source)):
        told = found[place]
        if "bad" in told:
            bad[place] = told["bad"]
            continue
        row, scores = source[place], told["scores"]
        check_same(place, row, told)
        numbers: Mapping[str, Any] = {**row["numbers"], recipe.number: scores}
        file.write(line(row, numbers, Path(recipe.out) / "images"))
        if recipe.first_stage:
            first = row["numbers"][recipe.first_stage]
            scores = [a + recipe.weight * b for a, b in zip(first, scores, strict=True)]
        yield row["id"], dict(zip(row["candidate_ids"], scores, strict=True))
