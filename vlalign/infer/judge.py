"""Judge every candidate of every query, on however many processes; what is kept is not asked again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlalign.data.overlap import word_overlap
from vlalign.files import replace, write_json
from vlalign.infer.facets import check_design
from vlalign.infer.judges.endpoint import ELSEWHERE
from vlalign.infer.measured import Measured
from vlalign.infer.parts import Lines, Parts
from vlalign.infer.rows import check_same, line, seal
from vlalign.infer.verdict import Verdict
from vlalign.ops.dist import launched
from vlalign.recipe.folder import claim, writing
from vlalign.recipe.judging import CERTAIN, OVERLAP, VOTE, JudgeRecipe
from vlalign.types import BadRow, DataError, RecipeError, Sample


def judge(recipe: JudgeRecipe, progress: Callable[[int], None] = lambda count: None) -> Path | None:
    """Write `out/{recipe.yaml, candidates.jsonl, judged.json}`; returns `out`, None where others are not yet
    done.

    What cannot be read or judged is told in `judged.json` with its reason, and tried again when it is run
    again. `progress` hears of rows that are done. Raises UserError; what was measured until then is kept.
    """
    source: Any = recipe.data.build(recipe.limits)
    wanted = [*recipe.numbers, recipe.label, *([recipe.known] if recipe.known is not None else [])]
    if missing := [name for name in wanted if name not in source.numbers]:
        raise RecipeError(
            f"data: not every candidate has the number '{missing[0]}'; all have {', '.join(source.numbers)}"
        )
    measured, (rank, world) = Measured(recipe), launched()
    if recipe.rasch is not None:
        judges = dict(zip(measured.names, measured.judges, strict=True))
        check_design(recipe.rasch, judges, recipe.numbers)
    out = claim(recipe, free=("store", *(f"judges.*.{name}" for name in ELSEWHERE)))
    if measured.shown is not None:
        measured.shown.choose(source, out)
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
        if measured.missing(row):  # no picture is opened for nothing
            row, items = source.opened(place, recipe.limits)
            measured.fill(row, items)
        return seal(row)
    except BadRow as error:
        if error.reason == "changed_file":  # all that follow would be as bad
            raise
        return {"bad": error.reason, "why": str(error)}


def _finish(recipe: JudgeRecipe, source: Any, lines: Lines, measured: Measured, out: Path) -> None:
    """The rows that stay with the judge's number, and how good that is. Raises DataError where none is."""
    told = Verdict(recipe, measured.names)
    bad: dict[int, str] = {}
    for place in range(len(source)):
        found = lines[place]
        if "bad" in found:
            bad[place] = f"{found['bad']}: {found['why']}"
            continue
        row = source[place]
        check_same(place, row, found)
        told.add(place, row, measured.of(row), _beside(row, measured))
    if not told.places:
        raise DataError(
            f"none of the {len(bad)} queries could be judged; the first: {next(iter(bad.values()))}"
        )
    told.decide()

    def write(beside: Path) -> None:
        with beside.open("w", encoding="utf-8") as file:
            for place in told.places:
                file.write(_line(recipe, source[place], told, place))

    replace(out / "candidates.jsonl", write)
    shown = {} if measured.shown is None else {"shown": measured.shown.account()}
    write_json(out / "judged.json", {**told.account(), **shown, "skipped": source.skipped, "bad": bad})


def _beside(row: Sample, measured: Measured) -> dict[str, list[float]]:
    """What every judge must beat, of each candidate."""
    overlap = [word_overlap(row["query"].text, each.text) for each in row["candidates"]]
    return {OVERLAP: overlap} | ({} if measured.shown is None else {VOTE: measured.shown.votes(row)})


def _line(recipe: JudgeRecipe, row: Sample, told: Verdict, place: int) -> str:
    """A row with the candidates that stay."""
    numbers = {**row["numbers"], recipe.number: told.scores[place]}
    if recipe.abstain is not None:
        numbers[f"{recipe.number}{CERTAIN}"] = [float(each) for each in told.certain[place]]
    if recipe.choose is not None:
        stay, suspected = told.chosen[place]
        if recipe.choose.treat == "relabel":
            label = recipe.known or recipe.label
            numbers[label] = [1.0 if at in suspected else x for at, x in enumerate(numbers[label])]
        numbers = {name: [own[at] for at in stay] for name, own in numbers.items()}
        lists = {name: [row[name][at] for at in stay] for name in ("candidates", "candidate_ids")}
        row = {**row, **lists}
    return line(row, numbers, Path(recipe.out) / "images")
