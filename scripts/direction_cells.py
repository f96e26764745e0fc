"""What directions of an encoder tell apart, and where they lead a curve: a cell of the study at a time."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlalign.data.augment import SIDE
from vlalign.data.sources.degraded import Degraded, DegradedRows
from vlalign.data.subset import Subset
from vlalign.evals.attribute import LOOKS, Floats, by_looks, told_apart
from vlalign.evals.reading import read_pictures
from vlalign.infer.direction import Looked
from vlalign.infer.evaluate import keep_features
from vlalign.infer.load import load_embedder
from vlalign.infer.poles import learnt, of_pair, prompted
from vlalign.models.embedder import DualEncoderEmbedder
from vlalign.models.enhance import Enhancer
from vlalign.objectives.embedding.along import Along
from vlalign.ops.direction import Direction, fit, score, write
from vlalign.registry import SOURCES
from vlalign.threads import ahead
from vlalign.types import BadRow, Context, Embeddings, Sample, Source

CLIP_ART = "openclipart"
STYLES = ("google", "twitter")
DARK = "exposure of -3 to -0.5"
TUNING = ("blur of 2", "exposure of -0.5", "style")  # what rates of fits are chosen on
ATTRIBUTES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    **{f"blur of {x:g}": {"blur": (x, x)} for x in (1.0, 2.0, 4.0)},
    **{f"exposure of {x:g}": {"exposure": (x, x)} for x in (-0.25, -0.5, -1.0)},
    DARK: {"exposure": (-3.0, -0.5)},
    "style": {},
}
RAVE, PAIR, PROMPTS = "RAVE", "pair", "prompts"
TRIED = (5e-4, 2e-3, 1e-2)
RATES: Mapping[str, Sequence[float]] = {RAVE: (0.0,), PAIR: TRIED, PROMPTS: TRIED}  # of fitting
STEPS = {PAIR: 1000, PROMPTS: 100}
ENHANCER, BRIGHTNESS, ORIGINALS = "enhancer", "brightness", "originals"
GUIDES = (RAVE, PAIR, PROMPTS, BRIGHTNESS, ORIGINALS)
ROWS = 150  # of a part, at most
CHOOSING, SHARE = 1000, 5  # the seed that rates are chosen on, and the part of concepts, 1 / 5, for it alone
WAY = 0.5

Loss = Callable[[Tensor, Tensor], Tensor]  # of changed pictures and their originals
Seen = dict[int, tuple[Tensor, Tensor]]  # by step


class Size(NamedTuple):
    """Of learning a curve: steps, dark pictures of one, unseen ones that are looked at, how often; rates."""

    steps: int = 60
    batch: int = 8
    unseen: int = 32
    every: int = 2
    rates: Sequence[float] = (0.01, 0.03)


class Cell(NamedTuple):
    """`what`: an attribute whose classes are told apart, or `enhancer`; `how`: by what, or by which guide.

    `fit`: the rate that it was learnt at; `rate`: that of a curve.
    """

    what: str
    how: str
    fit: float
    rate: float
    seed: int


class Small(Subset):
    """Every row of a source, its picture read once and kept as large as a blur's width is told for."""

    def __init__(self, source: Source) -> None:
        super().__init__(source, range(len(source)), {}, {}, what="small")
        self.seen: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        """One row. Raises BadRow."""
        if index not in self.seen:
            row = super().__getitem__(index)
            times = min(1.0, SIDE / min(row["image"].size))
            size = [max(1, round(times * x)) for x in row["image"].size]
            self.seen[index] = {**row, "image": row["image"].resize(size)}
        return self.seen[index]


@cache
def pool(style: str | None) -> Small:
    """Clip art, or emoji that the quickstart's encoder has not learnt from."""
    spec = {"name": "emoji", "style": style, "split": "unseen"} if style else {"name": CLIP_ART}
    return Small(SOURCES.decode(spec).build())


def parts(what: str, seed: int) -> list[Subset]:
    """Examples with an attribute and without, and unseen ones of both, before any is degraded."""
    sources = [pool(style) for style in STYLES] if not ATTRIBUTES[what] else [pool(None)] * 2
    concepts = np.array([sources[0].fields(row)["concept"] for row in range(len(sources[0]))])
    order = np.random.default_rng(0).permutation(np.unique(concepts))
    cut = len(order) // SHARE
    own = np.random.default_rng(seed).permutation(order[:cut] if seed == CHOOSING else order[cut:])
    rows = [np.flatnonzero(np.isin(concepts, some)) for some in np.array_split(own, 4)]
    dealt = [np.random.default_rng([seed, at]).permutation(each)[:ROWS] for at, each in enumerate(rows)]
    return [
        Subset(source, each.tolist(), {}, {}, what="a part")
        for source, each in zip(2 * sources, dealt, strict=True)
    ]


def worse(source: Source, what: str, seed: int) -> Source:
    """The same without the attribute; a style is lacked as it is."""
    how = ATTRIBUTES[what]
    of_rows = Degraded(source=SOURCES.decode({"name": CLIP_ART}), seed=seed, **how)
    return DegradedRows(source, of_rows) if how else source


class Study:
    """The encoder, and what it has seen of the seed that is measured."""

    def __init__(self, model: DualEncoderEmbedder, size: Size = Size()) -> None:
        self.model, self.size, self.folder = model, size, TemporaryDirectory()
        self._seen: dict[tuple[str, int], list[tuple[Tensor, Floats]]] = {}

    def seen(self, what: str, seed: int) -> list[tuple[Tensor, Floats]]:
        """Embeddings [N, D] and looks of the rows of each part that can be read."""
        if (what, seed) not in self._seen:
            self._seen = {key: found for key, found in self._seen.items() if key[1] == seed}
            self._seen[what, seed] = [
                self._read(worse(each, what, seed) if at % 2 else each)
                for at, each in enumerate(parts(what, seed))
            ]
        return self._seen[what, seed]

    def _read(self, source: Source) -> tuple[Tensor, Floats]:
        found = read_pictures(self.model, Looked(source, lambda count: None))
        return found.features, np.stack([sample["look"] for sample in found.samples])

    def fitted(self, how: str, what: str, rate: float, seed: int) -> tuple[Direction, float]:
        """A direction, and the seconds of one core that it took once the examples were embedded."""
        (positive, _), (negative, _), *_ = self.seen(what, seed)
        start = process_time()
        if how == RAVE:
            found = fit(positive, negative)
        elif how == PAIR:
            found = of_pair(*learnt(positive, negative, STEPS[how], rate, seed))
        else:
            found = of_pair(*prompted(self.model.model, positive, negative, STEPS[how], rate, seed))
        return found, process_time() - start

    def told(self, cell: Cell) -> dict[str, Any]:
        """`auc`, and `accuracy` by the sign, on unseen pictures; `past`: those beyond the target."""
        fitted, unseen = (self.seen(cell.what, cell.seed)[own] for own in (slice(0, 2), slice(2, 4)))
        if cell.how in LOOKS:
            return by_looks(fitted[0][1], fitted[1][1], (unseen[0][1], unseen[1][1]))[cell.how]
        found, seconds = self.fitted(cell.how, cell.what, cell.fit, cell.seed)
        positive, negative = (score(x, found.vector) for x, _ in unseen)
        past = (positive > found.target).double().mean().item()
        return {**told_apart(positive, negative), "past": past, "seconds": seconds}

    def guided(self, cell: Cell, yardstick: float) -> dict[str, Any]:
        """How soon a curve arrives, and what it has done to unseen pictures.

        `yardstick`: the rate of the pair by whose score arriving is told, beside RAVE's and the brightness.
        """
        enhancer = Enhancer(self.model.model, "global").train()
        bright, own, _, other = parts(DARK, cell.seed)
        dark, unseen = (pixels(enhancer, worse(each, DARK, cell.seed)) for each in (own, other))
        goals, wanted = (pixels(enhancer, each) for each in (own, other))
        unseen, wanted = unseen[: self.size.unseen], wanted[: self.size.unseen]
        guide = self.fitted(cell.how, DARK, cell.fit, cell.seed)[0] if cell.how in RATES else None
        light = grey(values(enhancer, pixels(enhancer, bright))).mean()
        loss = self._loss(enhancer, guide, light if cell.how == BRIGHTNESS else None)
        with torch.no_grad():
            original = enhancer.encode_image({"pixels": wanted})
        before, wanted = values(enhancer, unseen), values(enhancer, wanted)
        seen = learned(enhancer, loss, dark, goals, unseen, cell, self.size)
        with torch.no_grad():
            after = values(enhancer, enhancer.changed(unseen))
        found = {
            how: self.fitted(how, DARK, rate, cell.seed)[0] for how, rate in ((RAVE, 0.0), (PAIR, yardstick))
        }
        ways = {how: way(seen, original, each) for how, each in found.items()}
        errors = {step: (light - grey(wanted)).abs().mean().item() for step, (_, light) in seen.items()}
        ways[BRIGHTNESS] = {step: 1 - x / errors[0] for step, x in errors.items()}
        target, last = found[RAVE].target, max(seen)
        scores, goal = (score(x, found[RAVE].vector) for x in (seen[last][0], original))
        return {
            "steps": {by: next((at for at, x in own.items() if x >= WAY), None) for by, own in ways.items()},
            "way": {by: own[last] for by, own in ways.items()},
            "psnr_before": psnr(before, wanted),
            "psnr": psnr(after, wanted),
            "error_before": errors[0],
            "error": errors[last],
            "brightness": (grey(after) - grey(wanted)).mean().item(),
            "past": (scores > target).double().mean().item(),
            "past_originals": (goal > target).double().mean().item(),
            "overshoot": (scores - target).clamp(min=0).mean().item(),
            "over_originals": (scores > goal).double().mean().item(),
        }

    def _loss(self, enhancer: Enhancer, direction: Direction | None, light: Tensor | None) -> Loss:
        """By the objective `along`, by a mean brightness, or by the originals."""
        if direction is None:
            if light is None:
                return lambda changed, goal: (changed - goal).square().mean()
            return lambda changed, goal: (grey(values(enhancer, changed)) - light).square().mean()
        path, one = Path(self.folder.name) / "direction.safetensors", torch.ones(1)
        write(direction, path)
        objective = Along(direction=str(path))

        def along(changed: Tensor, goal: Tensor) -> Tensor:
            rows = enhancer.encode_image({"pixels": changed})
            return objective(Embeddings(rows, rows, one, one), Context({}, None, 1, 1)).mean()

        return along


@cache
def study(encoder: str) -> Study:
    """The encoder's, on one thread."""
    torch.set_num_threads(1)
    model = load_embedder(encoder)
    keep_features(model)
    return Study(model)


def run(cells: Sequence[Cell], encoder: str, yardstick: float) -> list[tuple[Cell, dict[str, Any]]]:
    """What is found of each."""
    own = study(encoder)
    return [
        (cell, own.guided(cell, yardstick) if cell.what == ENHANCER else own.told(cell)) for cell in cells
    ]


def way(seen: Seen, goal: Tensor, direction: Direction) -> dict[int, float]:
    """By step, the part of the way of the mean score from the start to that of the originals [N, D]."""
    scores = {step: score(rows, direction.vector).mean().item() for step, (rows, _) in seen.items()}
    end = score(goal, direction.vector).mean().item()
    return {step: (x - scores[0]) / (end - scores[0]) for step, x in scores.items()}


def learned(
    enhancer: Enhancer,
    loss: Loss,
    dark: Tensor,
    goals: Tensor,
    unseen: Tensor,
    cell: Cell,
    size: Size,
) -> Seen:
    """Embeddings [N, D] and brightness [N] of unseen pictures; the net stays as the last step has made it."""
    adam = torch.optim.Adam(enhancer.net.parameters(), lr=cell.rate)
    generator, found = torch.Generator().manual_seed(cell.seed), Seen()
    for step in range(size.steps + 1):
        if step % size.every == 0:
            with torch.no_grad():
                changed = enhancer.changed(unseen)
                found[step] = enhancer.encode_image({"pixels": changed}), grey(values(enhancer, changed))
        if step < size.steps:
            rows = torch.randperm(len(dark), generator=generator)[: size.batch]
            adam.zero_grad()
            loss(enhancer.changed(dark[rows]), goals[rows]).backward()
            adam.step()
    return found


def pixels(model: Enhancer, source: Source) -> Tensor:
    """Pictures as the tower is shown them [N, 3, H, W], those that can be read."""

    def shown(at: int) -> list[Tensor]:
        with suppress(BadRow):
            return [model.image.process([source[at]["image"]])["pixels"]]
        return []

    return torch.cat([each for found in ahead(shown, range(len(source))) for each in found])


def values(model: Enhancer, shown: Tensor) -> Tensor:
    """From 0, black, to 1, white."""
    return ((shown - model.black) / (model.white - model.black)).clamp(0, 1)


def grey(pictures: Tensor) -> Tensor:
    """Mean values [N]."""
    return pictures.mean((1, 2, 3))


def psnr(pictures: Tensor, wanted: Tensor) -> float:
    """The mean in dB; equal pictures differ by rounding to 8 bits."""
    errors = (pictures - wanted).square().mean((1, 2, 3)).clamp(min=1 / 12 / 255**2)
    return float((-10 * errors.log10()).mean())
