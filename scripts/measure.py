"""The frame of every benchmark: rows of one table, measured side by side with the anchor package.

A `scripts/bench_NAME.py` defines `BENCHES: dict[str, Callable[[int], list[Row]]]`, from a name to a function
of the repeats, and ends with `main(BENCHES, __doc__)`. Time: both sides by turns in one process. Memory: each
side in a fresh process, the growth of its resident set's peak while the step runs (`VmHWM`, set back through
`/proc/self/clear_refs`; without that file, the growth of `ru_maxrss`). Both sides have THREADS threads.
"""

import argparse
import ctypes
import gc
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import torch

from vlalign.files import write_json, write_text

THREADS = 2
ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- bench: written by scripts/bench_all.py -->", "<!-- end of bench -->"
ANCHORS = ("torch", "open-clip-torch", "clip-benchmark", "sentence-transformers")

Step = Callable[[], object]
Prepare = Callable[..., Step]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table. `ratio` is theirs / ours of a cost and should be large.

    With `at_most` it is ours / theirs and should be small. `spread`: the lowest and highest ratio of a pair
    of runs. Without a target nothing is promised. `points`: what was seen at each size of a scaling curve.
    """

    name: str
    anchor: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    target: float | None
    met: bool | None
    spread: tuple[float, float]
    repeats: int
    at_most: bool = False
    note: str = ""
    points: Mapping[str, Sequence[float]] | None = None


Bench = Callable[[int], list[Row]]


def row(
    name: str,
    anchor: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    *,
    target: float | None,
    unit: str = "s",
    at_most: bool = False,
    items: int = 0,
    note: str = "",
) -> Row:
    """Of costs (seconds, MiB), one a run and as many on both sides. `items`: tell items a second instead."""
    mine, other = median(ours), median(theirs)
    each = [a / b if at_most else b / a for a, b in zip(ours, theirs, strict=True)]
    ratio = mine / other if at_most else other / mine
    return Row(
        name=name,
        anchor=anchor,
        unit=unit,
        ours=items / mine if items else mine,
        theirs=items / other if items else other,
        ratio=ratio,
        target=target,
        met=None if target is None else ratio <= target if at_most else ratio >= target,
        spread=(min(each), max(each)),
        repeats=len(ours),
        at_most=at_most,
        note=note,
    )


def compared(
    name: str,
    anchor: str,
    ours: Step,
    theirs: Step,
    *,
    target: float | None,
    repeats: int = 5,
    warm: bool = True,
    **more: Any,
) -> Row:
    """Wall times, by turns in this process; `warm`: once before, uncounted. `more`: as for `row`."""
    torch.set_num_threads(THREADS)
    if warm:
        ours(), theirs()
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(repeats)]
    return row(name, anchor, *zip(*pairs, strict=True), target=target, **more)


def seconds(step: Step) -> float:
    """How long it takes."""
    gc.collect()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def weighed(
    name: str,
    anchor: str,
    ours: Prepare,
    theirs: Prepare,
    *args: Any,
    target: float | None,
    repeats: int = 5,
    warm: tuple[Any, ...] = (),
    **more: Any,
) -> Row:
    """Peak memory of the step that each side prepares from `args`, as by `peak`. `more`: as for `row`."""
    pairs = [[peak(side, *args, warm=warm) for side in (ours, theirs)] for _ in range(repeats)]
    return row(name, anchor, *zip(*pairs, strict=True), target=target, unit="MiB", **more)


def peak(prepare: Prepare, *args: Any, warm: tuple[Any, ...] = ()) -> float:
    """MiB that a fresh process's resident set grows by, at its peak, while the prepared step runs.

    `prepare` is a module's function, and what it makes before the step does not count. `warm`: arguments of a
    small step that runs before, so that thread pools and lazy imports do not count either.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak, prepare, args, warm).result()


def curve(
    name: str,
    anchor: str,
    ours: Callable[[int], float],
    theirs: Callable[[int], float],
    sizes: Sequence[int],
    *,
    unit: str,
) -> Row:
    """How each side's cost grows with its size: the slopes of log(cost) over log(size), nothing promised."""
    costs = {"ours": [ours(size) for size in sizes], "theirs": [theirs(size) for size in sizes]}
    logs = [math.log(size) for size in sizes]
    slopes = {
        side: linear_regression(logs, [math.log(cost) for cost in each]).slope for side, each in costs.items()
    }
    ratios = [b / a for a, b in zip(*costs.values(), strict=True)]
    return Row(
        name=name,
        anchor=anchor,
        unit=f"log-log slope, {unit}",
        **slopes,
        ratio=slopes["theirs"] / slopes["ours"],
        target=None,
        met=None,
        spread=(min(ratios), max(ratios)),
        repeats=1,
        points={"size": list(sizes)} | costs,
    )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the rows, then the scaling curves, then where they were seen."""
    lines = ["| what | against | ours | theirs | ratio (lowest to highest) | goal | met |", "|---" * 7 + "|"]
    for each in rows:
        if not each["points"]:
            ours, theirs, ratio, low, high = map(
                _short, (each["ours"], each["theirs"], each["ratio"], *each["spread"])
            )
            goal = (
                "" if each["target"] is None else f"{'<=' if each['at_most'] else '>='} {each['target']:g}x"
            )
            met = {True: "yes", False: "no", None: ""}[each["met"]]
            cells = [
                each["name"],
                each["anchor"],
                f"{ours} {each['unit']}",
                f"{theirs} {each['unit']}",
                f"{ratio}x ({low} to {high})",
                goal,
                ": ".join(filter(None, (met, each["note"]))),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    for each in rows:
        if each["points"]:
            sizes = ", ".join(str(size) for size in each["points"]["size"])
            told = [
                f"{side} {', '.join(map(_short, each['points'][side]))} (slope {each[side]:.2f})"
                for side in ("ours", "theirs")
            ]
            unit = each["unit"].rpartition(", ")[2]
            lines += [
                "",
                f"{each['name']} at {sizes}, in {unit}: {'; '.join(told)}, against {each['anchor']}.",
            ]
    places: dict[str, list[str]] = {}
    for each in rows:
        places.setdefault(each["machine"], []).append(each["commit"])
    for machine, commits in places.items():
        lines += ["", f"{machine}; commit {', '.join(dict.fromkeys(commits))}."]
    return "\n".join(lines)


def written(text: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A README with its table made anew. Raises ValueError when the markers are missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the README has no '{BEGIN}' ... '{END}' to write between")
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main(benches: Mapping[str, Bench], told: str | None) -> None:
    """The command line of a script of benches."""
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(benches), metavar="NAME", help=", ".join(benches))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows that are not run now stay in it")
    parser.add_argument("--readme", type=Path, help="run nothing; write the table of --json FILE into it")
    asked = parser.parse_args()
    if asked.repeats < 1:
        parser.error(f"--repeats must be >= 1, got {asked.repeats}")
    if asked.readme:
        if not (asked.json and asked.json.exists()):
            parser.error("--readme writes the rows of --json FILE, and there is no such file")
        write_text(asked.readme, written(asked.readme.read_text(encoding="utf-8"), read(asked.json)))
        return
    rows: list[dict[str, Any]] = []
    for name in asked.only or benches:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            rows += [asdict(each) | stamp() for each in benches[name](asked.repeats)]
        except ImportError as error:
            sys.exit(f"{name} needs the package '{error.name}'; pip install -e '.[bench]'")
        if asked.json:
            write_json(asked.json, merged(read(asked.json), rows))
    print(table(rows))


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is none."""
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    return rows


def merged(kept: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows measured again take the place of those of their name; new ones come last."""
    new = {each["name"]: each for each in rows}
    old = {each["name"]: each for each in kept}
    return list((old | new).values())


@cache
def stamp() -> dict[str, str]:
    """The machine and the commit, with a + where files were changed since."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = models[0].partition(":")[2].strip() if models else cpu
    versions = [f"{name} {_version(name)}" for name in ANCHORS]
    machine = ", ".join([f"{cpu}, {os.cpu_count()} cores, {THREADS} threads", *versions])
    commit = _git("rev-parse", "--short", "HEAD") or metadata.version("vlalign")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return {"machine": machine, "commit": commit + "+" * bool(changed)}


def _peak(prepare: Prepare, args: tuple[Any, ...], warm: tuple[Any, ...]) -> float:
    torch.set_num_threads(THREADS)
    if warm:
        prepare(*warm)()
    step = prepare(*args)
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # else the step would live in what the preparation freed
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before, after = _resident("VmRSS"), lambda: _resident("VmHWM")
    except OSError:
        before, after = _most(), _most
    step()
    return after() - before


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 2**10


def _most() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _short(x: float) -> str:
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
