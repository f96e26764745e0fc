"""The frame of every benchmark: rows of one table, measured side by side with the anchor package.

A `scripts/bench_NAME.py` defines `BENCHES: dict[str, Callable[[int], list[Row]]]`, from a name to a function
of the repeats, and ends with `main(BENCHES, __doc__)`. Time: both sides by turns in one process. Memory: each
side in a fresh process, the growth of its resident set's peak while the step runs (`VmHWM`, set back through
`/proc/self/clear_refs`; without that file, the growth of `ru_maxrss`). Both sides have THREADS threads.
"""

import argparse
import ctypes
import gc
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import torch
from tables import THREADS, between, merged, read, stamp, table

from vlalign.files import write_json, write_text

BEGIN, END = "<!-- bench: written by scripts/bench_all.py -->", "<!-- end of bench -->"

TURN, MOST = 0.25, 20  # seconds that a short step is run again for, and how often at most

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
    """Wall times, by turns in this process; `warm`: once before, uncounted. `more`: as for `row`.

    A turn of a side that is `warm` lasts `TURN` seconds if it can, and tells the mean of its runs: the first
    of them finds caches that hold what the other side left there.
    """
    runs = (1, 1)
    if warm:
        ours(), theirs()
        runs = tuple(min(MOST, math.ceil(TURN / seconds(side))) for side in (ours, theirs))
    pairs = [(seconds(ours, runs[0]), seconds(theirs, runs[1])) for _ in range(repeats)]
    return row(name, anchor, *zip(*pairs, strict=True), target=target, **more)


def seconds(step: Step, runs: int = 1) -> float:
    """How long it takes, the mean of so many runs."""
    gc.collect()
    start = time.perf_counter()
    for _ in range(runs):
        step()
    return (time.perf_counter() - start) / runs


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
        try:
            new = between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, table(read(asked.json)))
        except (OSError, ValueError) as error:
            parser.error(f"{asked.readme}: {error}")
        write_text(asked.readme, new)
        return
    torch.set_num_threads(THREADS)
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
