"""Which methods help, on which data: heads over frozen towers, compared over splits of emoji and clip art.

Each seed draws its own unseen concepts, evenly from the subcategories, all variants of a concept on one side,
and from the rest the concepts that it tunes on. Every arm is tuned alike, anew for each seed: each rate and
scale of the grid is trained, and the one that is best on the seed's own validation is measured on what is
unseen. (Tuned once for all seeds, the baseline with other first weights had another rate and scale than
itself, and differed from itself by 1.5 points.) An arm is compared with the baseline over the same seeds: the
mean difference of the mean reciprocal rank on unseen concepts (or of what its condition names), both
directions averaged, its 95 % interval, and Holm's correction over the whole table. The baseline with another
seed for its weights and order is an arm as well; where that one differs, nothing is told.

Splits are drawn again and again from the same pictures: an interval is over such splits, and does not reach
to other data. `unseen` means unseen in alignment: the pretrained towers may have seen it.

Finished cells are kept in `--cells` with what made them, and not run again; delete the file when the code of
a method has changed. Where there is none yet, it begins with those of compare_methods.jsonl.xz beside this
script.
"""

import argparse
import json
import lzma
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from arms import ALONE, ARMS, BASELINE, CLAIMS, CONDITIONS, ORACLE, RIVALS, TWIN
from cells import Arm, Rows, measured, trained
from rich.console import Console
from rich.table import Table
from study_data import FOUND, data, split
from tables import between, stamp
from verdicts import LEVEL, holm, paired, verdict

from vlalign.data.hashing import hash63
from vlalign.files import whole_lines, write_json, write_text
from vlalign.types import UserError

RATES, SCALES = (1.0e-3, 3.0e-3), (10.0, 30.0)
PRIMARY, GRADED = "primary", "ndcg@10"
METRICS = {
    "MRR": ("seen style", "mrr"),
    "R@1": ("seen style", "r@1"),
    "R@10": ("seen style", "r@10"),
    "unseen style MRR": ("unseen style", "mrr"),
    "unseen style R@10": ("unseen style", "r@10"),
    "flags MRR": ("flags", "mrr"),
}
OTHER = 5_000  # added to the seed of the baseline's twin, for its weights and order
SHIPPED = Path(__file__).with_suffix(".jsonl.xz")
BEGIN, END = "<!-- comparison: written by scripts/compare_methods.py -->", "<!-- end of the comparison -->"


class Cell(NamedTuple):
    """One run. `made`: a digest of arm and condition; `seed`: of split, order and first weights."""

    arm: str
    condition: str
    made: str
    seed: int
    rate: float
    scale: float


def run(cell: Cell, device: torch.device = torch.device("cpu")) -> dict[str, Any]:
    """Train and measure; what could not be is told in `failed`."""
    start, condition = perf_counter(), CONDITIONS[cell.condition]
    learned, others = split(cell.seed, condition.data)
    random = np.random.default_rng([cell.seed, 1])
    if condition.thin:
        learned = condition.thin(learned, random)
    if condition.plant:
        learned, planted = condition.plant(learned, random)
        if cell.arm == ORACLE:
            learned = learned.at(planted.logical_not())
    found: dict[str, Any]
    try:
        model = trained(
            learned,
            _arm(cell.arm).at(cell.scale),
            seed=cell.seed + OTHER * (cell.arm == TWIN),
            batch=condition.batch,
            steps=condition.epochs * -(-len(learned) // condition.batch),
            scale=cell.scale,
            device=device,
            lr=cell.rate,
        )
        graded = condition.metric == GRADED
        found = {name: measured(model, rows, graded) for name, rows in others.items()}
    except UserError as error:
        found = {"failed": str(error)}
    return cell._asdict() | {"rows": len(learned), "seconds": perf_counter() - start, **found}


def entries(arms: Sequence[str], conditions: Sequence[str]) -> list[tuple[str, str]]:
    """Arm and condition of each cell of the table; the oracle has a place where something was planted."""

    def has(own: Sequence[str] | None, arm: str) -> bool:
        return arm in (BASELINE, TWIN) or (arm not in ALONE if own is None else arm in own)

    return [
        (arm, name)
        for name in conditions
        for arm in (*arms, *[ORACLE] * (CONDITIONS[name].plant is not None))
        if arm == ORACLE or has(CONDITIONS[name].arms, arm)
    ]


def grid(arm: str, condition: str, seed: int) -> list[Cell]:
    """What an arm is tuned over."""
    settings = [asdict(_arm(arm)), asdict(CONDITIONS[condition])]
    made = f"{hash63(json.dumps(settings, default=lambda function: function.__name__)):016x}"
    return [Cell(arm, condition, made, seed, rate, scale) for rate in RATES for scale in SCALES]


class Cells:
    """What was measured, kept line by line in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = [json.loads(line) for line in whole_lines(path)]
        self.rows = {Cell(*(row[name] for name in Cell._fields)): row for row in rows}

    def add(self, row: Mapping[str, Any]) -> None:
        """Keep one."""
        self.rows[Cell(*(row[name] for name in Cell._fields))] = dict(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def best(self, arm: str, condition: str, seed: int) -> Mapping[str, Any]:
        """The cell that is best on its validation; empty where one is missing, or all failed."""
        cells = grid(arm, condition, seed)
        rows = [self.rows[cell] for cell in cells if cell in self.rows]
        sound, metric = [row for row in rows if "failed" not in row], CONDITIONS[condition].metric
        whole = len(rows) == len(cells)
        return max(sound, key=lambda row: row["validation"][metric]) if whole and sound else {}

    def columns(self, arm: str, condition: str, seeds: int) -> dict[str, dict[int, float]]:
        """Of each metric what each seed's best has; none where a seed has none."""
        best = {seed: self.best(arm, condition, seed) for seed in range(seeds)}
        metrics = METRICS | {PRIMARY: ("seen style", CONDITIONS[condition].metric)}
        return {
            name: {seed: row[where][metric] for seed, row in best.items()}
            for name, (where, metric) in metrics.items()
            if all(metric in row.get(where, {}) for row in best.values())
        }


def summary(done: Cells, arms: Sequence[str], conditions: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """A row for each arm and condition that was measured on every seed, as the baseline was."""
    rows = []
    for condition in conditions:
        columns = {
            arm: found
            for arm, _ in entries(arms, [condition])
            if (found := done.columns(arm, condition, seeds))
        }
        base = columns.pop(BASELINE, {})
        rows += [
            {"condition": condition, "arm": arm, "own": column, "base": base}
            for arm, column in columns.items()
            if base
        ]
    for row in rows:
        own, base = row.pop("own"), row["base"]
        row["paired"] = paired(own[PRIMARY], base[PRIMARY], len(rows))
        row["beside"] = {name: _mean(own[name]) - _mean(base[name]) for name in METRICS if name in own}
        row["base"] = _mean(base[PRIMARY])
    corrected = holm({(row["condition"], row["arm"]): row["paired"].p for row in rows})
    for row in rows:
        row["p"] = corrected[row["condition"], row["arm"]]
        row["verdict"] = verdict(row["paired"], row["p"])
    oracles = {row["condition"]: row for row in rows if row["arm"] == ORACLE and row["verdict"] == "helps"}
    for row in rows:
        oracle = oracles.get(row["condition"])
        row["share"] = row["paired"].mean / oracle["paired"].mean if oracle and oracle is not row else None
    return rows


def rivals(done: Cells, rows: Sequence[Mapping[str, Any]], seeds: int) -> list[str]:
    """A line for each two arms that are compared with each other, where both were measured."""
    found = {}
    for condition in dict.fromkeys(row["condition"] for row in rows):
        told = [row["arm"] for row in rows if row["condition"] == condition]
        for pair in RIVALS:
            if set(pair) <= set(told):
                own, other = (done.columns(arm, condition, seeds)[PRIMARY] for arm in pair)
                found[f"{pair[0]} less {pair[1]}, {condition}"] = paired(own, other, len(RIVALS))
    corrected = holm({name: each.p for name, each in found.items()})
    return [
        f"- {name}: {100 * each.mean:+.2f} [{100 * each.low:+.2f}, {100 * each.high:+.2f}], "
        f"{verdict(each, corrected[name])}"
        for name, each in found.items()
    ]


def check_twin(rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises SystemExit where the baseline differs from its twin, corrected over these, or has none."""
    twins = {row["condition"]: row["paired"].p for row in rows if row["arm"] == TWIN}
    broken = [condition for condition, p in holm(twins).items() if p < LEVEL]
    if broken:
        raise SystemExit(f"the baseline differs from itself ({', '.join(broken)}); nothing is told")
    if missing := {row["condition"] for row in rows} - twins.keys():
        raise SystemExit(f"the baseline has no twin ({', '.join(sorted(missing))}); run that arm too")


def markdown(rows: Sequence[Mapping[str, Any]], against: Sequence[str] = ()) -> str:
    """The tables of README: a line an arm, a column a condition; then what was seen beside it.

    `against`: lines about arms that are compared with each other.
    """
    conditions = [name for name in CONDITIONS if any(row["condition"] == name for row in rows)]
    lines = [f"| | {' | '.join(conditions)} |", "|---" * (len(conditions) + 1) + "|"]
    bases = {row["condition"]: row["base"] for row in rows}
    means = " | ".join(f"{100 * bases[name]:.1f}" for name in conditions)
    lines.append(f"| {BASELINE}: MRR, or what is named | {means} |")
    own = {(row["arm"], row["condition"]): row for row in rows}
    arms = [arm for arm in [*list(ARMS)[1:], ORACLE] if any(arm == row["arm"] for row in rows)]
    for arm in arms:
        cells = [_cell(own[arm, name]) if (arm, name) in own else "" for name in conditions]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines += ["", "Claimed, and not seen here:", ""]
    for (arm, name), claimed in CLAIMS.items():
        if (arm, name) in own and own[arm, name]["verdict"] != claimed:
            lines.append(f"- {arm}, {name}: {claimed}; here {_cell(own[arm, name])}")
    lines += ["", "Against each other:", "", *against] if against else []
    lines += ["", "<details><summary>The same beside the primary metric, means in points</summary>", ""]
    lines += [f"| condition | arm | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 2) + "|"]
    for row in rows:
        lines.append(f"| {row['condition']} | {row['arm']} | {' | '.join(_beside(row))} |")
    return "\n".join([*lines, "", "</details>"])


def _beside(row: Mapping[str, Any]) -> list[str]:
    return [f"{100 * row['beside'][name]:+.1f}" if name in row["beside"] else "" for name in METRICS]


def _mean(column: Mapping[int, float]) -> float:
    return float(np.mean([*column.values()]))


def _cell(row: Mapping[str, Any]) -> str:
    found = row["paired"]
    told = f"{100 * found.mean:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    if row["share"] is not None and row["verdict"] == "helps":
        told += f", {100 * row['share']:.0f} % of the oracle's"
    return f"**{row['verdict']}** {told}" if row["p"] < LEVEL else f"{told} (D {100 * found.detectable:.1f})"


def _arm(name: str) -> Arm:
    return ARMS[BASELINE if name == ORACLE else name]


def _alone(found: Mapping[str, Rows]) -> None:
    torch.set_num_threads(1)
    FOUND.update(found)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), metavar="ARM")
    parser.add_argument("--conditions", nargs="+", choices=list(CONDITIONS), default=list(CONDITIONS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--cells", type=Path, default=Path("runs/compare_methods.jsonl"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary")
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the table into it")
    asked = parser.parse_args()
    if asked.seeds < 2:
        parser.error(f"--seeds must be >= 2, got {asked.seeds}")
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, "")  # or hours would be for nothing
    asked.cells.parent.mkdir(parents=True, exist_ok=True)
    if not asked.cells.exists() and SHIPPED.exists():
        write_text(asked.cells, lzma.decompress(SHIPPED.read_bytes()).decode())
    done, console = Cells(asked.cells), Console(width=160)
    arms = list(dict.fromkeys([BASELINE, TWIN, *asked.arms]))
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(asked.processes, initializer=_alone, initargs=(dict(data()),)) as pool:
        wanted = [
            cell
            for condition in asked.conditions
            for seed in range(asked.seeds)
            for own in entries(arms, [condition])
            for cell in grid(*own, seed)
        ]
        todo = [cell for cell in wanted if cell not in done.rows]
        found = pool.imap_unordered(partial(run, device=asked.device), todo)
        for count, row in enumerate(found, start=1):
            done.add(row)
            if "failed" in row:
                console.print(f"{row['arm']}, {row['condition']}, seed {row['seed']}: {row['failed']}")
            if count % 50 == 0 or count == len(todo):
                console.print(f"{count} of {len(todo)} cells, {row['seconds']:.1f} s the last")
    rows = summary(done, arms, asked.conditions, asked.seeds)
    check_twin(rows)
    table = Table("condition", "arm", "primary", "p (Holm)", "verdict", *METRICS)
    for row in rows:
        more, found = _beside(row), row["paired"]
        told = f"{100 * found.mean:+.2f} [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
        table.add_row(row["condition"], row["arm"], told, f"{row['p']:.3f}", row["verdict"], *more)
    console.print(table)
    against = rivals(done, rows, asked.seeds)
    console.print("\n".join(against))
    if asked.json:
        write_json(asked.json, {**stamp(), "rows": [{**row, "paired": vars(row["paired"])} for row in rows]})
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, markdown(rows, against)))


if __name__ == "__main__":
    main()
