"""One reranker of a comparison: trained by its recipe, tuned on validation queries, asked the test's."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import vlalign
from vlalign.data.candidate_rows import CandidateRows
from vlalign.evals.candidates import plain
from vlalign.infer.load import picture
from vlalign.models.rerank_scorer import RerankScorer
from vlalign.recipe.decode import load_recipe
from vlalign.registry import MODELS
from vlalign.train.loop import train

ROOT = Path(__file__).parents[1]
WEIGHTS = (
    0.0,
    0.1,
    0.2,
    0.5,
    1.0,
    2.0,
    5.0,
    10.0,
)  # of a model's score beside the first stage's, in their spreads
FAST = torch.cpu._is_avx512_bf16_supported()  # elsewhere bfloat16 is many times slower than float32
OFFSET = 10.0  # what the first stage's cosine is multiplied by where training starts from it


class Cell(NamedTuple):
    """One training, or none: `steps` 0 asks the model as it is."""

    task: str
    arm: str
    seed: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rerankers of a task share. `model`: the recipe's; the rest is of training."""

    model: Mapping[str, Any]
    steps: int
    batch: int
    negatives: int


@dataclass(frozen=True)
class Queries:
    """Mined rows of which one candidate is right; the others of the `asked` queries no order can help.

    `places`: of the rows; `first`: the first stage's scores [Q, C], -inf for none; `right` [Q]: which it is.
    """

    rows: CandidateRows
    asked: int
    places: Sequence[int]
    first: NDArray[np.float64]
    right: NDArray[np.int64]

    @classmethod
    def of(cls, folder: Path) -> "Queries":
        """Of a folder that `vlalign mine` wrote. Raises SystemExit where several candidates are right."""
        rows = CandidateRows(folder / "candidates.jsonl", "as the first stage's")
        numbers = [rows[index]["numbers"] for index in range(len(rows))]
        if any(sum(each["label"]) > 1 for each in numbers):
            raise SystemExit(f"{folder}: a query has several right candidates")
        places = [index for index, each in enumerate(numbers) if any(each["label"])]
        first = padded([numbers[index]["score"] for index in places])
        right = [int(np.argmax(numbers[index]["label"])) for index in places]
        return cls(rows, len(rows), places, first, np.array(right))

    def scored(self, model: Any) -> NDArray[np.float64]:
        """A model's scores [Q, C]."""
        found = []
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST):
            for place in self.places:
                row = self.rows[place]
                candidates = [plain(each) for each in row["candidates"]]
                found += [each.tolist() for each in model.score([plain(row["query"])], [candidates])]
        return padded(found)

    def ranks(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """The rank of the right candidate, 1 the best; of equal scores the first half comes before it."""
        own = scores[np.arange(len(scores)), self.right][:, None]
        ahead, level = (scores > own).sum(1), (scores == own).sum(1) - 1
        return ahead + (level + 1) // 2 + 1


def padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """[Q, most], -inf where a row has no more."""
    out = np.full((len(rows), max(map(len, rows))), -np.inf)
    for place, row in enumerate(rows):
        out[place, : len(row)] = row
    return out


def reciprocal(ranks: NDArray[np.int64]) -> float:
    """Their mean reciprocal rank at 10."""
    return float(np.where(ranks <= 10, 1 / ranks, 0).mean())


def run(cell: Cell, setting: Setting, folder: Path) -> dict[str, Any]:
    """Train, tune the sum on validation, tell the ranks on each test. `folder`: of the task's mined rows."""
    torch.manual_seed(cell.seed)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        model = trained(cell, setting, folder, Path(name))
        offset = "offset" in cell.arm
        validation = Queries.of(folder / "validation")
        own = validation.scored(model) + (OFFSET * validation.first if offset else 0)
        spreads = spread(own), spread(validation.first)
        tried = {w: reciprocal(validation.ranks(summed(own, validation.first, spreads, w))) for w in WEIGHTS}
        weight = max(tried, key=lambda each: tried[each])
        told = {**cell._asdict(), "validation": reciprocal(validation.ranks(own)), "weight": weight}
        for test in sorted(path.name for path in folder.glob("test*")):
            asked = Queries.of(folder / test)
            own = asked.scored(model) + (OFFSET * asked.first if offset else 0)
            told[test] = {
                "alone": asked.ranks(own).tolist(),
                "sum": asked.ranks(summed(own, asked.first, spreads, weight)).tolist(),
            }
    return told


def spread(scores: NDArray[np.float64]) -> float:
    """The standard deviation of scores that are there."""
    return float(scores[np.isfinite(scores)].std()) or 1.0


def summed(
    own: NDArray[np.float64], first: NDArray[np.float64], spreads: tuple[float, float], weight: float
) -> NDArray[np.float64]:
    """First stage and model, each in units of its spread on validation."""
    added = np.where(np.isfinite(own), own, 0) * weight / spreads[0]
    return first / spreads[1] + added


def trained(cell: Cell, setting: Setting, folder: Path, out: Path) -> Any:
    """Its model, ready to score, which a training leaves in `out/run`."""
    if cell.arm == "zero-shot":
        return RerankScorer(MODELS.decode({**setting.model, "lora": None}).build(), opening=picture)
    kind = "sft" if "sft" in cell.arm else "contrastive"
    data = {"name": "candidates", "path": str(folder / "train" / "taught.jsonl")}
    changes = {
        "out": str(out / "run"),
        "model": setting.model,
        "data.train": {**data, "positives": 1, "negatives": setting.negatives},
        "data.batch": setting.batch,
        "data.chunk": setting.batch,
        "steps": setting.steps,
        "seed": cell.seed,
        "optim.lr": cell.rate,
        "precision": "bf16" if FAST else "fp32",
        "log.trackers": [],
        "checkpoint.every": 10 * setting.steps,
    }
    if kind == "contrastive":
        changes["task.terms.0.of"] = "scores"
    if "offset" in cell.arm:
        changes["task.offset"] = {"field": "score", "scale": OFFSET}
    path = ROOT / "recipes" / "rerank" / f"smollm_{kind}.yaml"
    train(load_recipe(path, [f"{name}={json.dumps(value)}" for name, value in changes.items()]))
    return vlalign.load(out / "run")
