"""Judge every candidate of every query, on however many processes, each pair once and for good."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlalign.data.overlap import word_overlap
from vlalign.files import replace, write_json
from vlalign.infer.measured import Measured
from vlalign.infer.parts import Lines, Parts
from vlalign.infer.pool import check_names
from vlalign.infer.rows import check_same, line, names, seal
from vlalign.infer.verdict import Verdict
from vlalign.ops.dist import launched
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.judging import JudgeRecipe
from vlalign.types import BadRow, RecipeError, Sample


def judge(recipe: JudgeRecipe, progress: Callable[[int], None] = lambda count: None) -> Path | None:
    """Write `out/{recipe.yaml, candidates.jsonl, judged.json}`; returns `out`, None where others are not yet
    done.

    What cannot be read is told in `judged.json` with its reason. `progress` hears of rows that are done.
    Raises UserError; what was measured until then is kept.
    """
    out, (rank, world) = claim(recipe, free=("store",)), launched()
    source: Any = recipe.data.build(recipe.limits)
    wanted = [*recipe.numbers, recipe.label]
    if missing := [name for name in wanted if name not in source.numbers]:
        raise RecipeError(
            f"data: not every candidate has the number '{missing[0]}'; all have {', '.join(source.numbers)}"
        )
    check_names(names(source))
    measured = Measured(recipe)
    with writing(out):
        parts = Parts(out, rank, world)
    for place in parts.todo(len(source)):
        told = _measured(source, place, measured, recipe)
        with writing(out):
            parts.add(place, told)
        progress(1)
    lines = parts.lines()
    if any(place not in lines for place in range(len(source))):
        return None  # the last process that ends finds all
    with writing(out):
        _finish(recipe, source, lines, measured, out)
    return out


def _measured(source: Any, place: int, measured: Measured, recipe: JudgeRecipe) -> dict[str, Any]:
    try:
        row = source[place]
        if not any(measured.missing(row)):  # no picture is opened for nothing
            return {**seal(row), "new": 0}
        row, items = source.opened(place, recipe.limits)
        return {**seal(row), "new": measured.fill(row, items)}
    except BadRow as error:
        return {"bad": error.reason}


def _finish(recipe: JudgeRecipe, source: Any, lines: Lines, measured: Measured, out: Path) -> None:
    """The rows that stay with the judge's number, and how good that is."""
    told = Verdict(recipe, measured.names)
    bad: dict[int, str] = {}
    for place in range(len(source)):
        if "bad" in lines[place]:
            bad[place] = lines[place]["bad"]
            continue
        row = source[place]
        check_same(place, row, lines[place])
        told.add(place, row, measured.of(row), [_overlap(row, each) for each in row["candidates"]])
    told.decide()

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            for place in told.places:
                file.write(_line(recipe, source[place], told, place))

    replace(out / "candidates.jsonl", write)
    new = sum(lines[place].get("new", 0) for place in told.places)
    write_json(out / "judged.json", {**told.account(), "measured_now": new, "bad": bad})


def _overlap(row: Sample, candidate: Any) -> float:
    return word_overlap(row["query"].text, candidate.text)


def _line(recipe: JudgeRecipe, row: Sample, told: Verdict, place: int) -> str:
    """A row with the candidates that stay."""
    numbers = {**row["numbers"], recipe.number: told.scores[place]}
    if recipe.choose is not None:
        stay, suspected = told.chosen[place]
        if recipe.choose.treat == "relabel":
            numbers[recipe.label] = [
                1.0 if at in suspected else x for at, x in enumerate(numbers[recipe.label])
            ]
        numbers = {name: [own[at] for at in stay] for name, own in numbers.items()}
        lists = {name: [row[name][at] for at in stay] for name in ("candidates", "candidate_ids")}
        row = {**row, **lists}
    return line(row, numbers, Path(recipe.out) / "images")
