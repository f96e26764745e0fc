"""A difference of two means beside poles that are learnt: what they tell apart, and where they lead a curve.

    scripts/quickstart out=runs/quickstart
    python scripts/compare_directions.py --encoder runs/quickstart/model --readme README.md

RAVE, Gaintseva et al. 2024, https://arxiv.org/abs/2404.01889, against CLIP-LIT, Liang et al. 2023,
https://arxiv.org/abs/2303.17569, whose poles are two texts with learnt tokens (`prompts`) or two learnt
vectors (`pair`). Clip art blurred (in pixels of a picture of 224) and exposed (in stops), and the style of
emoji, beside logistic regressions on brightness and on colours, all fitted to the same pictures. A seed deals
concepts to four parts: examples of both classes, and unseen ones, so that no picture and no concept is on two
sides. The encoder has learnt from no clip art, and from none of these emoji; its towers may have seen any.

Then one curve for all pictures is learnt on the dark examples, each method's own direction its guide; beside
them, guides that need no encoder: the mean brightness of the bright examples, and as a ceiling the originals
themselves. The papers' identity term is left out. `half way`: the steps until the unseen dark pictures' mean
score is half way to that of their originals, along RAVE's direction and along the pair's, or half of their
error in brightness is gone; compare steps at equal rates. Rates are chosen on concepts that are in no other
seed. Intervals: 95 % over seeds, which share pictures, so that they are too narrow; p-values are
corrected by Holm over a column.

What is measured is kept in runs/compare_directions.jsonl and not measured again.
"""

import argparse
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from direction_cells import (
    ATTRIBUTES,
    BRIGHTNESS,
    CHOOSING,
    DARK,
    ENHANCER,
    GUIDES,
    PAIR,
    RATES,
    RAVE,
    ROWS,
    SHARE,
    STEPS,
    STYLES,
    TUNING,
    WAY,
    Cell,
    Size,
    run,
)
from kept import Kept
from rich.console import Console
from scipy import stats
from tables import between, stamp
from verdicts import Paired, holm, paired

from vlalign.data.hashing import hash63
from vlalign.evals.attribute import LOOKS
from vlalign.files import write_text
from vlalign.models.layout import folder_digest, located

BEGIN = "<!-- directions: written by scripts/compare_directions.py -->"
END = "<!-- end of compared directions -->"
HOWS = (*RATES, *LOOKS)
MARKS = {RAVE: f"{RAVE}'s score", PAIR: f"the {PAIR}'s score", BRIGHTNESS: "brightness"}
LEFT = {
    "brightness error": "error",
    "brightness less the original's": "brightness",
    "share past the target": "past",
    "score past it": "overshoot",
    "share past their originals' score": "over_originals",
}
BEFORE = ("psnr_before", "error_before", "past_originals")
SOLVED = 0.95  # the AUC of a look from which on an attribute needs no encoder


Found = list[tuple[Cell, dict[str, Any]]]
Work = Callable[[Sequence[list[Cell]], float], Iterable[Found]]  # groups, and the rate of the yardstick


def grid(what: str, how: str) -> list[tuple[float, float]]:
    """Rates that are tried, of a fit and of a curve."""
    return [*product(RATES.get(how, (0.0,)), Size().rates if what == ENHANCER else (0.0,))]


class Cells(Kept[Cell]):
    """What was measured, and what it says of rates."""

    def rates(self, what: str, how: str) -> tuple[float, float]:
        """The best of `grid` on the seed for it: of a fit by AUC, over TUNING; of a curve by PSNR."""
        tried = grid(what, how)
        if len(tried) == 1:
            return tried[0]
        whats, name = ((ENHANCER,), "psnr") if what == ENHANCER else (TUNING, "auc")
        found = {
            rates: np.mean([self.rows[Cell(each, how, *rates, CHOOSING)][name] for each in whats])
            for rates in tried
        }
        return max(found, key=lambda rates: found[rates])

    def column(self, what: str, how: str, *names: str) -> dict[int, float]:
        """A number by seed, of those that have it."""
        found: dict[int, float] = {}
        for cell in sorted(self.rows):
            if cell[:2] == (what, how) and cell.seed != CHOOSING:
                value: Any = self.rows[cell]
                for name in names:
                    value = value[name]
                if value is not None:
                    found[cell.seed] = value
        return found


def digest(encoder: str) -> str:
    """Another one where a cell may be another."""
    told = (ATTRIBUTES, STYLES, TUNING, RATES, STEPS, ROWS, SHARE, WAY, Size())
    return f"{hash63(folder_digest(located(encoder, None)), *told):016x}"


def complete(done: Cells, cells: Sequence[Cell], work: Work) -> None:
    """Measure what is missing; cells that look at the same pictures by one process, but for curves."""
    yardstick = done.rates(DARK, PAIR)[0] if ENHANCER in {cell.what for cell in cells} else 0.0
    groups = defaultdict[tuple[Any, ...], list[Cell]](list)
    for cell in cells:
        if cell not in done.rows:
            groups[cell if cell.what == ENHANCER else (cell.what, cell.seed)].append(cell)
    for found in work([*groups.values()], yardstick):
        for cell, numbers in found:
            done.add(cell, numbers)


def measure(done: Cells, whats: Sequence[str], seeds: int, work: Work) -> None:
    """All cells; those that rates are chosen by come first."""
    for tried in (product(TUNING, STEPS), product([ENHANCER] if ENHANCER in whats else [], GUIDES)):
        complete(done, [Cell(*own, *x, CHOOSING) for own in tried for x in grid(*own)], work)
    cells = [
        Cell(what, how, *done.rates(what, how), seed)
        for seed in range(seeds)
        for what in whats
        for how in (GUIDES if what == ENHANCER else HOWS)
    ]
    complete(done, cells, work)


def interval(values: Mapping[int, float], digits: int = 1) -> str:
    """Mean [low, high]; of one value itself."""
    numbers = [*values.values()]
    mean = float(np.mean(numbers))
    if len(numbers) < 2:
        return f"{mean:.{digits}f}"
    width = float(stats.t.ppf(0.975, len(numbers) - 1) * np.std(numbers, ddof=1) / len(numbers) ** 0.5)
    return f"{mean:.{digits}f} [{mean - width:.{digits}f}, {mean + width:.{digits}f}]"


def differences(pairs: Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]]) -> dict[str, str]:
    """Each first less its second over the seeds of both, with p-values corrected for how many there are."""
    found: dict[str, Paired] = {}
    for name, columns in pairs.items():
        seeds = columns[0].keys() & columns[1].keys()
        if len(seeds) > 1:
            found[name] = paired(*({seed: x[seed] for seed in seeds} for x in columns))
    corrected = holm({name: each.p for name, each in found.items()})
    return {
        name: f"{each.mean:+.1f} [{each.low:+.1f}, {each.high:+.1f}] (p {corrected[name]:.2g})"
        for name, each in found.items()
    }


def told_apart(done: Cells) -> list[str]:
    """Markdown: attributes."""
    auc = {
        what: {how: _percent(done.column(what, how, "auc")) for how in HOWS}
        for what in ATTRIBUTES
        if done.column(what, RAVE, "auc")
    }
    best = {what: max(LOOKS, key=lambda look: np.mean([*own[look].values()])) for what, own in auc.items()}
    others = {how: {what: (own[RAVE], own[how]) for what, own in auc.items()} for how in STEPS}
    others["the better look"] = {what: (own[RAVE], own[best[what]]) for what, own in auc.items()}
    less = {name: differences(pairs) for name, pairs in others.items()}
    heads = [*HOWS, *(f"{RAVE} less {name}" for name in less), f"past {RAVE}'s target, %", "solved by a look"]
    lines = [f"| unseen pictures | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for what, own in auc.items():
        signs = [100 * float(np.mean([*done.column(what, how, "accuracy").values()])) for how in HOWS]
        told = [f"{interval(own[how])}; {sign:.1f}" for how, sign in zip(HOWS, signs, strict=True)]
        told += [each.get(what, "") for each in less.values()]
        told.append(interval(_percent(done.column(what, RAVE, "past"))))
        told.append(", ".join(look for look in LOOKS if np.mean([*own[look].values()]) >= 100 * SOLVED))
        lines.append(f"| {' | '.join([what, *told])} |")
    return lines


def led(done: Cells) -> list[str]:
    """Markdown: guides."""
    every = {how: _gained(done, how) for how in GUIDES}
    gained = {how: own for how, own in every.items() if own}
    less = differences({how: (own, gained[RAVE]) for how, own in gained.items() if how != RAVE})
    heads = [
        "guided by",
        "rates",
        "fitted in, s",
        *(f"half way by {by}" for by in MARKS.values()),
        "PSNR gained, dB",
    ]
    heads += [f"less {RAVE}'s", *LEFT]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for how, own in gained.items():
        seconds = [*done.column(DARK, how, "seconds").values()]
        told = [how, ", ".join(f"{x:g}" for x in done.rates(ENHANCER, how) if x)]
        told.append(f"{np.mean(seconds):.2g}" if seconds else "")
        for by in MARKS:
            steps = done.column(ENHANCER, how, "steps", by)
            told.append(f"{interval(steps) if steps else 'never'} ({len(steps)} of {len(own)})")
        told += [interval(own), less.get(how, "")]
        told += [interval(done.column(ENHANCER, how, name), 3) for name in LEFT.values()]
        lines.append(f"| {' | '.join(told)} |")
    before = [interval(done.column(ENHANCER, RAVE, name), 3) for name in BEFORE]
    return [
        *lines,
        "",
        f"Before it PSNR is {before[0]} dB and the brightness error {before[1]}; past {RAVE}'s target lie "
        f"{before[2]} of the originals.",
    ]


def _gained(done: Cells, how: str) -> dict[int, float]:
    before = done.column(ENHANCER, how, "psnr_before")
    return {seed: x - before[seed] for seed, x in done.column(ENHANCER, how, "psnr").items()}


def _percent(column: Mapping[int, float]) -> dict[int, float]:
    return {seed: 100 * x for seed, x in column.items()}


def markdown(done: Cells) -> str:
    """Both tables, and what holds for all of it."""
    seeds = {cell.seed for cell in done.rows} - {CHOOSING}
    rates = ", ".join(f"{how} {STEPS[how]} steps at {done.rates(DARK, how)[0]:g}" for how in STEPS)
    told = (
        f"{len(seeds)} seeds, at most {ROWS} examples of a class; AUC and, after it, accuracy by the sign of "
    )
    told += (
        f"the score, in %. Fitted with {rates}; curves with {Size().steps} steps of {Size().batch} pictures."
    )
    tables = [told_apart(done)]
    if done.column(ENHANCER, RAVE, "psnr"):
        tables.append(led(done))
    return "\n\n".join([told, *("\n".join(each) for each in tables), f"{stamp()['machine']}."])


def main() -> None:
    """The command line."""
    whats = [*ATTRIBUTES, ENHANCER]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", required=True, help="the quickstart's: a dual encoder's folder")
    parser.add_argument("--what", nargs="+", choices=whats, default=whats)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cells", type=Path, default=Path("runs/compare_directions.jsonl"))
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the tables into it")
    asked = parser.parse_args()
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, "")  # or an hour would be for nothing
    done, console = Cells(asked.cells, Cell, digest(asked.encoder)), Console(width=200)
    with multiprocessing.get_context("spawn").Pool(asked.processes) as pool:

        def work(groups: Sequence[list[Cell]], yardstick: float) -> Iterator[Found]:
            own = partial(run, encoder=asked.encoder, yardstick=yardstick)
            for found in pool.imap_unordered(own, groups):
                console.print("; ".join(f"{cell.what}, {cell.how}, seed {cell.seed}" for cell, _ in found))
                yield found

        measure(done, asked.what, asked.seeds, work)
    console.print(markdown(done))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, markdown(done)))


if __name__ == "__main__":
    main()
