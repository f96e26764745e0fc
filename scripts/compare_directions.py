"""A difference of two means beside two learnt vectors: what they tell apart, and where they lead an enhancer.

    python scripts/compare_directions.py --readme README.md

RAVE, Gaintseva et al. 2024, https://arxiv.org/abs/2404.01889, against CLIP-LIT, Liang et al. 2023,
https://arxiv.org/abs/2303.17569, with its two vectors learnt in the space of embeddings. Attributes of clip
art (blur in pixels of a picture of 224, exposure in stops) and the style of emoji, on pictures whose titles
or concepts were not seen, beside logistic regressions on brightness and on colours; the two classes share no
picture. Embeddings are EfficientNet-Lite0's features. The enhancer is one curve for all pictures, darkened by
half a stop to three: `steps` until unseen ones have gone half of the way from their score to RAVE's target.
All intervals: 95 % over seeds, which draw splits, pictures and strengths.

What is measured is kept in runs/compare_directions.jsonl and not measured again.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from scipy import stats
from tables import between, stamp
from torch import Tensor, nn
from verdicts import paired

from vlalign.data.sources.degraded import Degraded, DegradedRows
from vlalign.data.subset import Subset
from vlalign.evals.attribute import LOOKS, Floats, by_looks, told_apart
from vlalign.evals.reading import read_pictures
from vlalign.files import cache_folder, whole_lines, write_text
from vlalign.infer.direction import Looked, learnt, of_pair
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.enhance import Enhancer
from vlalign.models.feature_cache import FeatureCache
from vlalign.models.pair import DualEncoder
from vlalign.objectives.embedding.along import Along
from vlalign.ops.direction import Direction, fit, score, write
from vlalign.recipe.decode import load_recipe
from vlalign.registry import SOURCES
from vlalign.threads import ahead
from vlalign.train.model import build
from vlalign.types import BadRow, Context, Source

RECIPE = "recipes/align/quickstart.yaml"
BEGIN = "<!-- directions: written by scripts/compare_directions.py -->"
END = "<!-- end of compared directions -->"
CLIP_ART: Mapping[str, Any] = {"name": "openclipart"}
STYLES: tuple[Mapping[str, Any], ...] = (
    {"name": "emoji", "style": "google"},
    {"name": "emoji", "style": "twitter"},
)
ATTRIBUTES: Mapping[str, Mapping[str, float]] = {
    "blur of 1": {"blur": 1.0},
    "blur of 2": {"blur": 2.0},
    "blur of 4": {"blur": 4.0},
    "exposure of -0.5": {"exposure": -0.5},
    "exposure of -1": {"exposure": -1.0},
    "exposure of -2": {"exposure": -2.0},
    "style": {},
}
RAVE, PAIR = "RAVE", "CLIP-LIT's pair"
DARK = (-3.0, -0.5)  # stops, of what an enhancer is to light, and of what its direction leads away from
ROWS, STEPS, RATE = 150, 1000, 5e-4  # of a class and a split; of learning a pair
WAY = 0.5


class Size(NamedTuple):
    """Of an enhancer's run: pictures learnt from and unseen ones, steps, those of a batch, and the rate."""

    learnt: int = 160
    unseen: int = 48
    steps: int = 60
    batch: int = 16
    rate: float = 0.02
    every: int = 2  # steps between looks at the unseen


class Cell(NamedTuple):
    """`what`: an attribute whose classes are told apart, or by what an enhancer is guided."""

    what: str
    seed: int


def encoder() -> DualEncoder:
    """The quickstart's towers; embeddings of pictures are the tower's features."""
    model: DualEncoder = build(load_recipe(RECIPE, [], verb="train"))
    model.image_head, model.dim = nn.Identity(), model.image.width
    return model.eval()


def embedder(model: DualEncoder) -> DualEncoderEmbedder:
    """Takes from the user's cache what it has seen."""
    return DualEncoderEmbedder(
        model, caches={"image": FeatureCache.of(model.image, cache_folder() / "features")}
    )


def drawn(spec: Mapping[str, Any], split: str, seed: int, parts: Sequence[int]) -> list[Subset]:
    """Rows of a source's split, by the seed, in parts that share none."""
    source = SOURCES.decode({**spec, "split": split, "seed": seed}).build()
    order = np.random.default_rng([seed, 0]).permutation(len(source)).tolist()
    ends = np.cumsum([0, *parts])
    return [
        Subset(source, order[a:b], {}, {}, what="drawn") for a, b in zip(ends[:-1], ends[1:], strict=True)
    ]


def classes(what: str, split: str, seed: int, rows: int) -> tuple[Source, Source]:
    """Pictures that have an attribute, and others that lack it."""
    if not ATTRIBUTES[what]:  # the second half of Twitter's, so that no concept is on both sides
        return drawn(STYLES[0], split, seed, [rows])[0], drawn(STYLES[1], split, seed, [rows, rows])[1]
    whole, other = drawn(CLIP_ART, split, seed, [rows, rows])
    worse = {name: (x, x) for name, x in ATTRIBUTES[what].items()}
    return whole, DegradedRows(other, Degraded(source=SOURCES.decode(CLIP_ART), seed=seed, **worse))


def seen(model: DualEncoderEmbedder, source: Source) -> tuple[Tensor, Floats]:
    """Embeddings [N, D] and looks of the rows that can be read."""
    found = read_pictures(model, Looked(source, lambda count: None))
    return found.features, np.stack([sample["look"] for sample in found.samples])


def directions(positive: Tensor, negative: Tensor, seed: int) -> dict[str, Direction]:
    """Both, by name."""
    return {RAVE: fit(positive, negative), PAIR: of_pair(*learnt(positive, negative, STEPS, RATE, seed))}


def told(model: DualEncoderEmbedder, cell: Cell, rows: int = ROWS) -> dict[str, Any]:
    """AUC and accuracy by the sign of the score on unseen pictures, of both and of looks."""
    fitted, unseen = (
        [seen(model, source) for source in classes(cell.what, split, cell.seed, rows)]
        for split in ("train", "unseen")
    )
    found = directions(fitted[0][0], fitted[1][0], cell.seed)
    apart = {name: told_apart(*(score(x, each.vector) for x, _ in unseen)) for name, each in found.items()}
    return apart | by_looks(fitted[0][1], fitted[1][1], (unseen[0][1], unseen[1][1]))


def pixels(model: Enhancer, source: Source) -> Tensor:
    """Pictures as the tower is shown them [N, 3, H, W], those that can be read."""

    def shown(at: int) -> list[Tensor]:
        with suppress(BadRow):
            return [model.image.process([source[at]["image"]])["pixels"]]
        return []

    return torch.cat([each for found in ahead(shown, range(len(source))) for each in found])


def guided(model: DualEncoderEmbedder, cell: Cell, size: Size = Size()) -> dict[str, Any]:
    """A curve that one of both has guided: how soon it arrives, and what it has done to unseen pictures."""
    enhancer = Enhancer(model.model, "global").train()
    worse = Degraded(source=SOURCES.decode(CLIP_ART), exposure=DARK, seed=cell.seed)
    bright, dark = drawn(CLIP_ART, "train", cell.seed, [ROWS, ROWS])
    positive, negative = (seen(model, source)[0] for source in (bright, DegradedRows(dark, worse)))
    fitted = directions(positive, negative, cell.seed)
    (own,), (other,) = (
        drawn(CLIP_ART, split, cell.seed, [count])
        for split, count in (("train", size.learnt), ("unseen", size.unseen))
    )
    learning, unseen = (pixels(enhancer, DegradedRows(each, worse)) for each in (own, other))
    wanted = _values(enhancer, pixels(enhancer, other))
    with TemporaryDirectory() as folder:
        write(fitted[cell.what], Path(folder) / "direction.safetensors")
        along = Along(direction=str(Path(folder) / "direction.safetensors"))
        scores = _learned(enhancer, along, learning, unseen, fitted[RAVE], cell.seed, size)
    start, target, last = scores[0].mean().item(), fitted[RAVE].target, scores[max(scores)]
    there = [step for step, x in scores.items() if x.mean() >= start + WAY * (target - start)]
    with torch.no_grad():
        before, after = (_values(enhancer, x) for x in (unseen, enhancer.changed(unseen)))
    grey = [(x.mean((1, 2, 3)) - wanted.mean((1, 2, 3))) for x in (before, after)]
    return {
        "steps": there[0] if there else None,
        "psnr_before": _psnr(before, wanted),
        "psnr": _psnr(after, wanted),
        "brightness_before": grey[0].mean().item(),
        "brightness": grey[1].mean().item(),
        "overshoot": (last - target).clamp(min=0).mean().item(),
        "past": (last > target).double().mean().item(),
        "scores": {step: x.mean().item() for step, x in scores.items()},
        "target": target,
    }


def _learned(
    enhancer: Enhancer,
    along: Along,
    rows: Tensor,
    unseen: Tensor,
    yardstick: Direction,
    seed: int,
    size: Size,
) -> dict[int, Tensor]:
    """Scores of unseen pictures [N] by step; the net is left as the last step has made it."""
    adam = torch.optim.Adam(enhancer.net.parameters(), lr=size.rate)
    generator, found = torch.Generator().manual_seed(seed), {}
    for step in range(size.steps + 1):
        if step % size.every == 0:
            with torch.no_grad():
                found[step] = score(
                    enhancer.encode_image({"pixels": enhancer.changed(unseen)}), yardstick.vector
                )
        if step < size.steps:
            batch = rows[torch.randperm(len(rows), generator=generator)[: size.batch]]
            features = enhancer({"query": {"pixels": batch}})
            adam.zero_grad()
            along(features, Context({}, None, step + 1, size.steps)).mean().backward()
            adam.step()
    return found


def _values(enhancer: Enhancer, shown: Tensor) -> Tensor:
    return ((shown - enhancer.black) / (enhancer.white - enhancer.black)).clamp(0, 1)


def _psnr(pictures: Tensor, wanted: Tensor) -> float:
    errors = (pictures - wanted).square().mean((1, 2, 3)).clamp(min=1 / 12 / 255**2)
    return float((-10 * errors.log10()).mean())


class Cells:
    """What was measured, kept line by line in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = [json.loads(line) for line in whole_lines(path)]
        self.rows = {Cell(line["what"], line["seed"]): line for line in lines}

    def add(self, cell: Cell, found: Mapping[str, Any]) -> None:
        """Keep one."""
        self.rows[cell] = cell._asdict() | dict(found)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[cell]) + "\n")

    def of(self, what: str) -> list[Mapping[str, Any]]:
        """All seeds of one, in their order."""
        return [row for cell, row in sorted(self.rows.items()) if cell.what == what]


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean [low, high]; of one value itself."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.{digits}f}"
    width = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{mean:.{digits}f} [{mean - width:.{digits}f}, {mean + width:.{digits}f}]"


def markdown(done: Cells) -> str:
    """Both tables."""
    methods = (RAVE, PAIR, *LOOKS)
    head = [f"{name} {metric}" for metric in ("AUC", "accuracy") for name in methods]
    lines = [
        f"| unseen pictures | {' | '.join(head)} | RAVE's AUC less the pair's |",
        "|---" * (len(head) + 2) + "|",
    ]
    for what in ATTRIBUTES:
        if rows := done.of(what):
            columns = [
                [100 * row[name][metric] for row in rows]
                for metric in ("auc", "accuracy")
                for name in methods
            ]
            both = [dict(enumerate(column)) for column in columns[:2]]
            less = paired(*both) if len(rows) > 1 else None
            cell = f"{less.mean:+.1f} [{less.low:+.1f}, {less.high:+.1f}]" if less else ""
            lines.append(f"| {' | '.join([what, *map(interval, columns), cell])} |")
    head = ["guided by", "seeds", "steps", "arrived", "PSNR gained, dB", "brightness less the original's"]
    head += ["past the target", "overshoot"]
    lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for what in (RAVE, PAIR):
        if rows := done.of(what):
            arrived = [row["steps"] for row in rows if row["steps"] is not None]
            own = [
                what,
                str(len(rows)),
                interval(arrived) if arrived else "",
                f"{len(arrived)} of {len(rows)}",
                interval([row["psnr"] - row["psnr_before"] for row in rows], 2),
                interval([row["brightness"] for row in rows], 3),
                interval([100 * row["past"] for row in rows]) + " %",
                interval([row["overshoot"] for row in rows], 3),
            ]
            lines.append(f"| {' | '.join(own)} |")
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--what", nargs="+", choices=[*ATTRIBUTES, RAVE, PAIR], default=[*ATTRIBUTES, RAVE, PAIR]
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cells", type=Path, default=Path("runs/compare_directions.jsonl"))
    parser.add_argument("--readme", type=Path, metavar="README.md", help="write the tables into it")
    asked = parser.parse_args()
    if asked.readme:
        between(asked.readme.read_text(encoding="utf-8"), BEGIN, END, "")  # or an hour would be for nothing
    asked.cells.parent.mkdir(parents=True, exist_ok=True)
    done, console, model = Cells(asked.cells), Console(width=200), embedder(encoder())
    for cell in [Cell(what, seed) for seed in range(asked.seeds) for what in asked.what]:
        if cell not in done.rows:
            began = time.perf_counter()
            found = (told if cell.what in ATTRIBUTES else guided)(model, cell)
            done.add(cell, found | {"seconds": time.perf_counter() - began, **stamp()})
            console.print(f"{cell.what}, seed {cell.seed}: {done.rows[cell]['seconds']:.0f} s")
    console.print(markdown(done))
    if asked.readme:
        text = asked.readme.read_text(encoding="utf-8")
        write_text(asked.readme, between(text, BEGIN, END, markdown(done)))


if __name__ == "__main__":
    main()
