"""A combiner of pictures and texts against the same without the text, without the picture, and a learned sum.

    python scripts/compare_combiners.py --cells runs/compare_combiners.jsonl --readme README.md

Each is recipes/retrieve/combiner.yaml over the frozen dual encoder of recipes/align/quickstart.yaml, trained
on the same triplets of emoji; all are measured on the same queries, whose bases none has met in a triplet. A
seed is of the encoder, the split, the weights and the order. Rates are chosen on another seed, for each by
itself. Intervals: 95 %, by Student's t, of paired differences over seeds, and over the queries of all seeds,
of which many have a base in common, so that the second is too narrow. Cells that the same recipes made are
not run again, nor are finished runs: delete the file and the folder when the code of a method has changed.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kept import Kept
from rich.console import Console
from tables import between, stamp

from vlalign.data.hashing import hash63
from vlalign.evals.metrics.paired import paired
from vlalign.evals.rows import read_rows
from vlalign.files import write_text
from vlalign.recipe.decode import load_recipe
from vlalign.recipe.schemas import TrainRecipe
from vlalign.train.loop import train

BEGIN = "<!-- combiners: written by scripts/compare_combiners.py -->"
END = "<!-- end of combiners -->"
OURS, MODES = "combined", ("combined", "sum", "image", "text")
TOLD = {
    OURS: "combiner of both",
    "sum": "learned sum of both",
    "image": "the same combiner, of the picture alone",
    "text": "the same combiner, of the text alone",
    "sum_": "encoder as it is: sum of both",
    "picture_": "encoder as it is: picture alone",
    "text_": "encoder as it is: text alone",
}
ENCODER, COMBINER = "recipes/align/quickstart.yaml", "recipes/retrieve/combiner.yaml"
RATES, CHOOSING = (3e-4, 1e-3, 3e-3, 1e-2), 1000  # the seed that rates are chosen on
SETS = {"unseen_bases": "google", "unseen_bases_unseen_style": "twitter"}
PLACES = (1, 2, 3)


class Cell(NamedTuple):
    """One training."""

    mode: str
    rate: float
    seed: int


def recipes(
    cell: Cell, folder: Path, overrides: Sequence[str], of_encoder: Sequence[str]
) -> tuple[TrainRecipe, TrainRecipe]:
    """Of the seed's encoder, and of what lies on it."""
    encoder = folder / f"encoder_{cell.seed}"
    first = [f"out={encoder}", f"seed={cell.seed}", "evals=[]", "log.trackers=[]", *of_encoder]
    tasks = ", ".join(
        f"{name}: {{name: emoji_changes, style: {style}, split: unseen, limit: 1000, seed: {cell.seed}}}"
        for name, style in SETS.items()
    )
    then = [
        f"out={folder / '_'.join(map(str, cell))}",
        f"model.encoder={encoder}",
        f"model.mode={cell.mode}",
        f"optim.lr={cell.rate}",
        f"seed={cell.seed}",
        f"data.train.seed={cell.seed}",
        "log.trackers=[]",
        f"evals=[{{name: genecis, dataset: emoji, tasks: {{{tasks}}}}}]",
        *overrides,
    ]
    return load_recipe(ENCODER, first), load_recipe(COMBINER, then)


def digest(overrides: Sequence[str], of_encoder: Sequence[str]) -> str:
    """Another one where a cell may be another."""
    return f"{hash63(*recipes(Cell(OURS, RATES[0], CHOOSING), Path(), overrides, of_encoder)):016x}"


def run(asked: tuple[TrainRecipe, TrainRecipe]) -> dict[str, Any]:
    """Numbers of each query, by set and metric, and chance. Trains the encoder where there is none."""
    encoder, head = asked
    train(encoder)
    out = train(head)
    if out is None:
        raise SystemExit("start it as one process")
    rows = {row.dataset.partition("/")[2]: row for row in read_rows(out)}
    return {name: {**rows[name].exhibits["queries"], "chance": dict(rows[name].chance)} for name in SETS}


def best(done: Kept[Cell], mode: str) -> float:
    """The rate, by the seed that rates are chosen on."""
    first = next(iter(SETS))
    return max(RATES, key=lambda rate: _mean(done.rows[Cell(mode, rate, CHOOSING)][first]["R@1"]))


def columns(done: Kept[Cell], name: str, seeds: Sequence[int]) -> dict[str, dict[str, list[list[float]]]]:
    """Of a set: numbers of each query [seeds][queries], by way and metric."""

    def of_seeds(mode: str) -> list[Mapping[str, Any]]:
        return [done.rows[Cell(mode, best(done, mode), seed)][name] for seed in seeds]

    own = {mode: (of_seeds(mode), "") for mode in MODES}
    own |= {way: (own[OURS][0], way) for way in TOLD if way not in MODES}
    return {
        way: {f"R@{k}": [row[f"{prefix}R@{k}"] for row in rows] for k in PLACES}
        for way, (rows, prefix) in own.items()
    }


def table(done: Kept[Cell], seeds: Sequence[int]) -> list[str]:
    """Markdown: a row a way, for each set."""
    lines = [
        "| drawings | query | rate | R@1 | R@2 | R@3 | combiner's R@1 less its [seeds] [queries] |",
        "|---" * 7 + "|",
    ]
    for name, style in SETS.items():
        found = columns(done, name, seeds)
        ours = found[OURS]["R@1"]
        for way, own in found.items():
            rate = f"{best(done, way):g}" if way in MODES else ""
            told = [f"{100 * _mean(list(map(_mean, own[f'R@{k}']))):.1f}" for k in PLACES]
            less = "" if way == OURS else difference(ours, own["R@1"])
            lines.append(f"| {' | '.join([style, TOLD[way], rate, *told, less])} |")
        chance = done.rows[Cell(OURS, best(done, OURS), seeds[0])][name]["chance"]
        told = [f"{100 * chance[f'R@{k}']:.1f}" for k in PLACES]
        lines.append(f"| {' | '.join([style, 'chance', '', *told, ''])} |")
    return lines


def difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> str:
    """Of means over seeds, in points, with both intervals."""
    over = [paired([*map(_mean, ours)], [*map(_mean, theirs)])]
    over.append(paired([x for own in ours for x in own], [x for own in theirs for x in own]))
    told = [
        f"[{100 * each['low']:+.1f}, {100 * each['high']:+.1f}]" if "low" in each else "" for each in over
    ]
    return " ".join([f"{100 * over[0]['difference']:+.1f}", *told])


def _mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", type=Path, default=Path("runs/compare_combiners.jsonl"))
    parser.add_argument("--folder", type=Path, default=Path("runs/compare_combiners"), help="of the runs")
    parser.add_argument(
        "--override", action="append", default=[], metavar="PATH=VALUE", help="of each recipe"
    )
    parser.add_argument(
        "--encoder", action="append", default=[], metavar="PATH=VALUE", help="of the encoder's"
    )
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the table into it")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error(f"--seeds must be >= 2, got {asked.seeds}")
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, "")  # or an hour would be for nothing
    done = Kept(asked.cells, Cell, digest(asked.override, asked.encoder))
    console, seeds = Console(width=160), range(asked.seeds)

    def measure(cell: Cell) -> None:
        if cell not in done.rows:
            done.add(cell, run(recipes(cell, asked.folder, asked.override, asked.encoder)))

    for mode in MODES:
        for rate in RATES:
            measure(Cell(mode, rate, CHOOSING))
    for seed in seeds:
        for mode in MODES:
            measure(Cell(mode, best(done, mode), seed))
    lines = [*table(done, seeds), "", f"{len(seeds)} seeds. {stamp()['machine']}."]
    console.print("\n".join(lines), markup=False)
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, "\n".join(lines)))


if __name__ == "__main__":
    main()
